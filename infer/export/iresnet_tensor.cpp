// Tensors uint8 [N, H, W, 3] for Gst-nvdspreprocess, whose own library makes floating point only.
//
// The plugin has already cut and scaled each frame to the size of the network, as RGBA (or RGB) with a row pitch. What is
// left is to drop the fourth byte of each pixel and the padding of each row. Normalisation is in the network.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "nvdspreprocess_interface.h"

struct CustomCtx {
    size_t width = 0, height = 0;
    cudaStream_t stream = nullptr;
};

static NvDsPreProcessStatus refuse(const char *expected)
{
    std::fprintf(stderr, "iresnet: expected %s; see config_nvdspreprocess.txt\n", expected);
    return NVDSPREPROCESS_CONFIG_FAILED;
}

extern "C" CustomCtx *initLib(CustomInitParams parameters)
{
    const NvDsPreProcessTensorParams &tensor = parameters.tensor_params;
    const std::vector<int> &shape = tensor.network_input_shape;
    if (tensor.data_type != NvDsDataType_UINT8 || tensor.network_input_order != NvDsPreProcessNetworkInputOrder_kNHWC ||
        tensor.network_color_format != NvDsPreProcessFormat_RGB || shape.size() != 4 || shape[3] != 3) {
        refuse("tensor-data-type=1, network-input-order=1, network-color-format=0 and a shape N;H;W;3");
        return nullptr;
    }
    auto context = std::make_unique<CustomCtx>();
    context->height = shape[1];
    context->width = shape[2];
    if (cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking) != cudaSuccess)
        return nullptr;
    return context.release();
}

extern "C" void deInitLib(CustomCtx *context)
{
    cudaStreamDestroy(context->stream);
    delete context;
}

extern "C" NvDsPreProcessStatus IResNetTransform(NvBufSurface *input, NvBufSurface *output, CustomTransformParams &parameters)
{
    if (NvBufSurfTransformSetSessionParams(&parameters.transform_config_params) != NvBufSurfTransformError_Success ||
        NvBufSurfTransform(input, output, &parameters.transform_params) != NvBufSurfTransformError_Success)
        return NVDSPREPROCESS_CUSTOM_TRANSFORMATION_FAILED;
    return NVDSPREPROCESS_SUCCESS;
}

// Pixels are rows of a 3-D copy here: 3 bytes of each, width rows to a slice, and a slice for each row of the picture.
static cudaError_t pack(const CustomCtx &context, void *source, size_t pixel, size_t pitch, void *destination)
{
    cudaMemcpy3DParms copy{};
    copy.srcPtr = make_cudaPitchedPtr(source, pixel, pixel, pitch / pixel);
    copy.dstPtr = make_cudaPitchedPtr(destination, 3, 3, context.width);
    copy.extent = make_cudaExtent(3, context.width, context.height);
    copy.kind = cudaMemcpyDeviceToDevice;
    return cudaMemcpy3DAsync(&copy, context.stream);
}

extern "C" NvDsPreProcessStatus IResNetPrepareTensor(CustomCtx *context, NvDsPreProcessBatch *batch,
                                                     NvDsPreProcessCustomBuf *&buffer, CustomTensorParams &parameters,
                                                     NvDsPreProcessAcquirer *acquirer)
{
    const bool rgba = batch->scaling_pool_format == NvDsPreProcessFormat_RGBA;
    if (!rgba && batch->scaling_pool_format != NvDsPreProcessFormat_RGB)
        return refuse("frames scaled as RGBA or RGB");
    const size_t image = 3 * context->width * context->height;
    buffer = acquirer->acquire();
    cudaError_t error = cudaSuccess;
    for (size_t i = 0; i < batch->units.size() && error == cudaSuccess; ++i) {
        char *destination = static_cast<char *>(buffer->memory_ptr) + i * image;
        void *source = batch->units[i].converted_frame_ptr;
        // The pitch of RGB need not be a multiple of three, so its rows cannot be counted in pixels.
        error = rgba ? pack(*context, source, 4, batch->pitch, destination)
                     : cudaMemcpy2DAsync(destination, 3 * context->width, source, batch->pitch, 3 * context->width,
                                         context->height, cudaMemcpyDeviceToDevice, context->stream);
    }
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(context->stream);
    if (error != cudaSuccess) {
        acquirer->release(buffer);
        return NVDSPREPROCESS_CUDA_ERROR;
    }
    parameters.params.network_input_shape[0] = static_cast<int>(batch->units.size());
    return NVDSPREPROCESS_SUCCESS;
}
