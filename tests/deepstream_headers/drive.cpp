// Calls the exported library as DeepStream would and prints what it did; the test knows what to expect.
#include <cstdio>
#include <cstdlib>

#include "nvdsinfer_custom_impl.h"
#include "nvdspreprocess_interface.h"

extern "C" {
bool IResNetParseClassifier(const std::vector<NvDsInferLayerInfo> &, const NvDsInferNetworkInfo &, float,
                            std::vector<NvDsInferAttribute> &, std::string &);
CustomCtx *initLib(CustomInitParams);
void deInitLib(CustomCtx *);
NvDsPreProcessStatus IResNetTransform(NvBufSurface *, NvBufSurface *, CustomTransformParams &);
NvDsPreProcessStatus IResNetPrepareTensor(CustomCtx *, NvDsPreProcessBatch *, NvDsPreProcessCustomBuf *&,
                                          CustomTensorParams &, NvDsPreProcessAcquirer *);
}

static NvDsInferLayerInfo layer(const char *name, NvDsInferDataType type, void *buffer, unsigned elements)
{
    return {type, {1, {elements}, elements}, 0, name, buffer, 0};
}

static void parse(float score, int index, float threshold, NvDsInferDataType type)
{
    float scores[] = {score, 0.1f}, logits[] = {1, 2, 3};
    int classes[] = {index, 0};
    std::vector<NvDsInferAttribute> attributes;
    std::string text;
    const bool good = IResNetParseClassifier({layer("logits", FLOAT, logits, 3), layer("classes", type, classes, 2),
                                              layer("scores", FLOAT, scores, 2)},
                                             {}, threshold, attributes, text);
    std::printf("parse %d [%s]", good, text.c_str());
    for (const NvDsInferAttribute &one : attributes) {
        std::printf(" %u %u %.2f %s", one.attributeIndex, one.attributeValue, one.attributeConfidence,
                    one.attributeLabel);
        free(one.attributeLabel);
    }
    std::printf("\n");
}

struct Pool : NvDsPreProcessAcquirer {
    std::vector<unsigned char> memory;
    NvDsPreProcessCustomBuf buffer{};
    int out = 0;
    NvDsPreProcessCustomBuf *acquire() override
    {
        ++out;
        buffer.memory_ptr = memory.data();
        return &buffer;
    }
    gboolean release(NvDsPreProcessCustomBuf *) override { return --out, 1; }
};

static CustomInitParams setup(NvDsDataType type, std::vector<int> shape)
{
    return {1, {NvDsPreProcessNetworkInputOrder_kNHWC, shape, NvDsPreProcessFormat_RGB, type}, {}, nullptr};
}

// Frames of 2 rows of 3 pixels, whose bytes count up; the fourth byte of a pixel and the padding are 255.
static void prepare(CustomCtx *context, NvDsPreProcessFormat format, unsigned pixel, unsigned pitch)
{
    std::vector<std::vector<unsigned char>> frames(2, std::vector<unsigned char>(2 * pitch, 255));
    unsigned char value = 0;
    for (auto &frame : frames)
        for (unsigned row = 0; row < 2; ++row)
            for (unsigned column = 0; column < 3; ++column)
                for (unsigned channel = 0; channel < 3; ++channel)
                    frame[row * pitch + column * pixel + channel] = value++;
    NvDsPreProcessBatch batch{{{frames[0].data()}, {frames[1].data()}}, format, pitch};
    Pool pool;
    pool.memory.assign(2 * 18 + 4, 200);
    NvDsPreProcessCustomBuf *buffer = nullptr;
    CustomTensorParams parameters{{NvDsPreProcessNetworkInputOrder_kNHWC, {4, 2, 3, 3}, NvDsPreProcessFormat_RGB,
                                   NvDsDataType_UINT8}};
    const int status = IResNetPrepareTensor(context, &batch, buffer, parameters, &pool);
    std::printf("prepare %d %d %d", status, pool.out, parameters.params.network_input_shape[0]);
    for (unsigned char byte : pool.memory)
        std::printf(" %d", byte);
    std::printf("\n");
}

int main()
{
    parse(0.75f, 1, 0.5f, INT32);
    parse(0.25f, 1, 0.5f, INT32);
    parse(0.75f, 99, 0.5f, INT32);
    parse(0.75f, -1, 0.5f, INT32);
    parse(0.75f, 1, 0.5f, INT64);
    std::printf("init %d %d\n", initLib(setup(NvDsDataType_FP32, {4, 2, 3, 3})) != nullptr,
                initLib(setup(NvDsDataType_UINT8, {4, 3, 2, 2})) != nullptr);
    CustomCtx *context = initLib(setup(NvDsDataType_UINT8, {4, 2, 3, 3}));
    prepare(context, NvDsPreProcessFormat_RGBA, 4, 16);
    prepare(context, NvDsPreProcessFormat_RGB, 3, 10);
    prepare(context, NvDsPreProcessFormat_GRAY, 3, 10);
    fail_copies() = cudaErrorInvalidValue;
    prepare(context, NvDsPreProcessFormat_RGBA, 4, 16);
    NvBufSurface in{}, out{};
    CustomTransformParams parameters{};
    const int status = IResNetTransform(&in, &out, parameters);
    std::printf("transform %d %d\n", status, out.transformed);
    deInitLib(context);
}
