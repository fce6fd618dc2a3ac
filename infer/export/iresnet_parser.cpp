// Classes of the network as DeepStream metadata, for Gst-nvinfer and Gst-nvinferserver.
//
// DeepStream's own parser takes every output for the probabilities of one attribute. This network has three outputs, and
// its best classes are found on the GPU already: scores (float32, falling) and classes (int32), best first.
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "nvdsinfer_custom_impl.h"

static const char *const LABELS[] = {
#include "labels.inc"
};

static const NvDsInferLayerInfo *find(const std::vector<NvDsInferLayerInfo> &layers, const char *name,
                                      NvDsInferDataType type)
{
    for (const NvDsInferLayerInfo &layer : layers)
        if (!layer.isInput && layer.dataType == type && layer.buffer && std::strcmp(layer.layerName, name) == 0)
            return &layer;
    return nullptr;
}

extern "C" bool IResNetParseClassifier(const std::vector<NvDsInferLayerInfo> &layers, const NvDsInferNetworkInfo &,
                                       float threshold, std::vector<NvDsInferAttribute> &attributes,
                                       std::string &description)
{
    const NvDsInferLayerInfo *scores = find(layers, "scores", FLOAT), *classes = find(layers, "classes", INT32);
    if (!scores || !classes || !scores->inferDims.numElements)
        return false;
    const float score = static_cast<const float *>(scores->buffer)[0];
    const int index = static_cast<const int *>(classes->buffer)[0];
    if (index < 0 || index >= static_cast<int>(sizeof LABELS / sizeof *LABELS))
        return false;
    if (score < threshold)
        return true;
    NvDsInferAttribute attribute{};
    attribute.attributeValue = static_cast<unsigned int>(index);
    attribute.attributeConfidence = score;
    attribute.attributeLabel = strdup(LABELS[index]); // DeepStream frees it
    attributes.push_back(attribute);
    description.append(LABELS[index]).append(" ");
    return true;
}

static_assert(std::is_same<decltype(&IResNetParseClassifier), NvDsInferClassiferParseCustomFunc>::value,
              "the signature is that of nvdsinfer_custom_impl.h");
