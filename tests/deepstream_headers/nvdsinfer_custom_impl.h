// The declarations of DeepStream's header of this name that the exported parser uses.
#pragma once
#include <string>
#include <vector>

typedef enum { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3, INT64 = 4, UINT8 = 5 } NvDsInferDataType;

typedef struct {
    unsigned int numDims;
    unsigned int d[8];
    unsigned int numElements;
} NvDsInferDims;

typedef struct {
    NvDsInferDataType dataType;
    NvDsInferDims inferDims;
    int bindingIndex;
    const char *layerName;
    void *buffer;
    int isInput;
} NvDsInferLayerInfo;

typedef struct {
    unsigned int width, height, channels;
} NvDsInferNetworkInfo;

typedef struct {
    unsigned int attributeIndex, attributeValue;
    float attributeConfidence;
    char *attributeLabel;
} NvDsInferAttribute;

typedef bool (*NvDsInferClassiferParseCustomFunc)(std::vector<NvDsInferLayerInfo> const &, NvDsInferNetworkInfo const &,
                                                  float, std::vector<NvDsInferAttribute> &, std::string &);
