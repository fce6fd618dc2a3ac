// The declarations of DeepStream's gstnvdsmeta.h and nvdsmeta.h that the exported probe uses.
#pragma once
#include <gst/gst.h>

typedef GList NvDsMetaList;
typedef enum { NVDS_INVALID_META = -1, NVDS_USER_META = 7, NVDS_PREPROCESS_BATCH_META = 27 } NvDsMetaType;
struct NvDsBaseMeta {
    NvDsMetaType meta_type;
};
struct NvDsUserMeta {
    NvDsBaseMeta base_meta;
    void *user_meta_data;
};
struct NvDsBatchMeta {
    NvDsMetaList *frame_meta_list, *batch_user_meta_list;
};
struct NvOSD_RectParams {
    float left, top, width, height;
};
struct NvDsFrameMeta {
    guint source_id;
    gint frame_num;
    NvDsMetaList *obj_meta_list;
};
struct NvDsObjectMeta {
    NvOSD_RectParams rect_params;
    NvDsMetaList *classifier_meta_list;
};
struct NvDsClassifierMeta {
    gint unique_component_id;
    NvDsMetaList *label_info_list;
};
struct NvDsLabelInfo {
    char result_label[128];
    char *pResult_label;
    guint result_class_id;
    float result_prob;
};

// A buffer here is the metadata of its batch.
inline NvDsBatchMeta *gst_buffer_get_nvds_batch_meta(GstBuffer *buffer)
{
    return reinterpret_cast<NvDsBatchMeta *>(buffer);
}
