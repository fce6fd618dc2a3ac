// The declarations of DeepStream's header of this name, and of the CUDA runtime, that the exported library uses. The
// "device" is the host; copies check what the real ones ask for.
#pragma once
#include <cstddef>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

typedef enum { cudaSuccess = 0, cudaErrorInvalidValue = 1 } cudaError_t;
typedef enum { cudaMemcpyDeviceToDevice = 3 } cudaMemcpyKind;
typedef struct CUstream_st *cudaStream_t;
enum { cudaStreamNonBlocking = 1 };
struct cudaPitchedPtr {
    void *ptr;
    size_t pitch, xsize, ysize;
};
struct cudaExtent {
    size_t width, height, depth;
};
struct cudaMemcpy3DParms {
    void *srcArray;
    cudaPitchedPtr srcPtr;
    void *dstArray;
    cudaPitchedPtr dstPtr;
    cudaExtent extent;
    cudaMemcpyKind kind;
};

inline cudaError_t &fail_copies()
{
    static cudaError_t error = cudaSuccess;
    return error;
}
inline cudaPitchedPtr make_cudaPitchedPtr(void *ptr, size_t pitch, size_t x, size_t y) { return {ptr, pitch, x, y}; }
inline cudaExtent make_cudaExtent(size_t width, size_t height, size_t depth) { return {width, height, depth}; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    *stream = reinterpret_cast<cudaStream_t>(1);
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t pitch, size_t width, size_t rows,
                                     cudaMemcpyKind, cudaStream_t)
{
    if (width > pitch || width > to_pitch)
        return cudaErrorInvalidValue;
    for (size_t row = 0; row < rows; ++row)
        std::memcpy(static_cast<char *>(to) + row * to_pitch, static_cast<const char *>(from) + row * pitch, width);
    return fail_copies();
}
inline cudaError_t cudaMemcpy3DAsync(const cudaMemcpy3DParms *copy, cudaStream_t stream)
{
    const cudaPitchedPtr &from = copy->srcPtr, &to = copy->dstPtr;
    if (copy->extent.height > from.ysize || copy->extent.height > to.ysize)
        return cudaErrorInvalidValue;
    for (size_t slice = 0; slice < copy->extent.depth; ++slice) {
        const cudaError_t error =
            cudaMemcpy2DAsync(static_cast<char *>(to.ptr) + slice * to.pitch * to.ysize, to.pitch,
                              static_cast<char *>(from.ptr) + slice * from.pitch * from.ysize, from.pitch,
                              copy->extent.width, copy->extent.height, copy->kind, stream);
        if (error)
            return error;
    }
    return cudaSuccess;
}

typedef int gboolean;
typedef enum { NvDsDataType_FP32 = 0, NvDsDataType_UINT8 = 1 } NvDsDataType;
typedef enum { NvBufSurfTransformError_Success = 0 } NvBufSurfTransform_Error;
struct NvBufSurface {
    int transformed;
};
struct NvBufSurfTransformConfigParams {};
struct NvBufSurfTransformParams {};
inline NvBufSurfTransform_Error NvBufSurfTransformSetSessionParams(NvBufSurfTransformConfigParams *)
{
    return NvBufSurfTransformError_Success;
}
inline NvBufSurfTransform_Error NvBufSurfTransform(NvBufSurface *, NvBufSurface *output, NvBufSurfTransformParams *)
{
    output->transformed = 1;
    return NvBufSurfTransformError_Success;
}

typedef struct CustomCtx CustomCtx;
typedef enum {
    NVDSPREPROCESS_SUCCESS = 0,
    NVDSPREPROCESS_CONFIG_FAILED,
    NVDSPREPROCESS_CUSTOM_LIB_FAILED,
    NVDSPREPROCESS_CUSTOM_TRANSFORMATION_FAILED,
    NVDSPREPROCESS_CUSTOM_TENSOR_FAILED,
    NVDSPREPROCESS_INVALID_PARAMS,
    NVDSPREPROCESS_OUTPUT_PARSING_FAILED,
    NVDSPREPROCESS_CUDA_ERROR,
} NvDsPreProcessStatus;
typedef enum { NvDsPreProcessNetworkInputOrder_kNCHW = 0, NvDsPreProcessNetworkInputOrder_kNHWC }
    NvDsPreProcessNetworkInputOrder;
typedef enum {
    NvDsPreProcessFormat_RGB,
    NvDsPreProcessFormat_BGR,
    NvDsPreProcessFormat_GRAY,
    NvDsPreProcessFormat_RGBA,
} NvDsPreProcessFormat;

struct CustomTransformParams {
    NvBufSurfTransformConfigParams transform_config_params;
    NvBufSurfTransformParams transform_params;
};
struct NvDsPreProcessTensorParams {
    NvDsPreProcessNetworkInputOrder network_input_order;
    std::vector<int> network_input_shape;
    NvDsPreProcessFormat network_color_format;
    NvDsDataType data_type;
};
struct CustomTensorParams {
    NvDsPreProcessTensorParams params;
};
struct CustomInitParams {
    unsigned unique_id;
    NvDsPreProcessTensorParams tensor_params;
    std::unordered_map<std::string, std::string> user_configs;
    char *config_file_path;
};
struct NvDsPreProcessCustomBuf {
    void *memory_ptr;
};
class NvDsPreProcessAcquirer {
public:
    virtual NvDsPreProcessCustomBuf *acquire() = 0;
    virtual gboolean release(NvDsPreProcessCustomBuf *) = 0;
};
struct NvDsPreProcessUnit {
    void *converted_frame_ptr = nullptr;
};
struct NvDsPreProcessBatch {
    std::vector<NvDsPreProcessUnit> units;
    NvDsPreProcessFormat scaling_pool_format;
    unsigned pitch;
};
