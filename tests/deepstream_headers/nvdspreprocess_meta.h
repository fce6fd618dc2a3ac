// The declarations of DeepStream's nvdspreprocess_meta.h and nvds_roi_meta.h that the exported probe uses.
#pragma once
#include <vector>

#include "gstnvdsmeta.h"

struct NvDsRoiMeta {
    NvOSD_RectParams roi;
    NvDsFrameMeta *frame_meta;
    NvDsMetaList *classifier_meta_list;
};
struct GstNvDsPreProcessBatchMeta {
    std::vector<guint64> target_unique_ids;
    std::vector<NvDsRoiMeta> roi_vector;
};
