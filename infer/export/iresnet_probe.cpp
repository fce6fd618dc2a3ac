// A probe for the source pad of nvinfer or nvinferserver, which shows where the result of a frame is:
//
//     gst_pad_add_probe(pad, GST_PAD_PROBE_TYPE_BUFFER, IResNetProbe, nullptr, nullptr);
//
// * After Gst-nvdspreprocess (input-tensor-from-meta=1) it hangs on the region of interest, in the pre-processing
//   metadata of the batch. No object is made, and what other elements hang on objects is not this network's.
// * Without it, the element makes an object as large as the frame, and it hangs there.
//
// Prints a line a result: source, frame number, rectangle, class index, probability, name.
#include <cstdio>

#include <gst/gst.h>

#include "gstnvdsmeta.h"
#include "nvdspreprocess_meta.h"

static const guint IRESNET_UNIQUE_ID = 1; // gie-unique-id, unique_id of the configurations in this folder

static void print(const NvDsFrameMeta *frame, const char *where, const NvOSD_RectParams &rectangle,
                  const NvDsMetaList *classifiers)
{
    for (; classifiers; classifiers = classifiers->next) {
        const auto *classifier = static_cast<const NvDsClassifierMeta *>(classifiers->data);
        if (classifier->unique_component_id != static_cast<gint>(IRESNET_UNIQUE_ID))
            continue;
        for (const NvDsMetaList *at = classifier->label_info_list; at; at = at->next) {
            const auto *label = static_cast<const NvDsLabelInfo *>(at->data);
            // A long name is in memory of its own.
            const char *name = label->pResult_label ? label->pResult_label : label->result_label;
            std::printf("source %u frame %d %s %.0f:%.0f:%.0f:%.0f class %u %.4f %s\n", frame->source_id,
                        frame->frame_num, where, static_cast<double>(rectangle.left),
                        static_cast<double>(rectangle.top), static_cast<double>(rectangle.width),
                        static_cast<double>(rectangle.height), label->result_class_id,
                        static_cast<double>(label->result_prob), name);
        }
    }
}

extern "C" GstPadProbeReturn IResNetProbe(GstPad *, GstPadProbeInfo *info, gpointer)
{
    NvDsBatchMeta *batch = gst_buffer_get_nvds_batch_meta(GST_PAD_PROBE_INFO_BUFFER(info));
    if (!batch)
        return GST_PAD_PROBE_OK;
    bool regions = false;
    for (const NvDsMetaList *at = batch->batch_user_meta_list; at; at = at->next) {
        const auto *user = static_cast<const NvDsUserMeta *>(at->data);
        if (user->base_meta.meta_type != NVDS_PREPROCESS_BATCH_META)
            continue;
        const auto *prepared = static_cast<const GstNvDsPreProcessBatchMeta *>(user->user_meta_data);
        for (const guint64 target : prepared->target_unique_ids) {
            if (target != IRESNET_UNIQUE_ID)
                continue;
            regions = true;
            for (const NvDsRoiMeta &region : prepared->roi_vector)
                print(region.frame_meta, "region", region.roi, region.classifier_meta_list);
        }
    }
    for (const NvDsMetaList *at = regions ? nullptr : batch->frame_meta_list; at; at = at->next) {
        const auto *frame = static_cast<const NvDsFrameMeta *>(at->data);
        for (const NvDsMetaList *of = frame->obj_meta_list; of; of = of->next) {
            const auto *object = static_cast<const NvDsObjectMeta *>(of->data);
            print(frame, "frame", object->rect_params, object->classifier_meta_list);
        }
    }
    return GST_PAD_PROBE_OK;
}
