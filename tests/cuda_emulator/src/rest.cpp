// Error names, look-up of entry points, and what is not emulated: textures, arrays, modules and real kernels,
// peer and inter-process memory. These entry points exist, because pycuda links to them, and refuse.
#include <dlfcn.h>

#include <string>

#include "emulator.h"

using namespace emu;

static const struct {
  int code;
  const char *name, *text;
} errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"},
    {35, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

EMU_API CUresult cuGetErrorString(CUresult code, const char** text) {
  for (auto& e : errors)
    if (e.code == code) {
      *text = e.text;
      return CUDA_SUCCESS;
    }
  *text = "unrecognized error code";
  return CUDA_ERROR_INVALID_VALUE;
}

EMU_API CUresult cuGetErrorName(CUresult code, const char** text) {
  for (auto& e : errors)
    if (e.code == code) {
      *text = e.name;
      return CUDA_SUCCESS;
    }
  *text = nullptr;
  return CUDA_ERROR_INVALID_VALUE;
}

EMU_API CUresult cuProfilerStart() {
  EMU_ENTER("cuProfilerStart", CONTEXT);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuProfilerStop() {
  EMU_ENTER("cuProfilerStop", CONTEXT);
  return CUDA_SUCCESS;
}

// The newest version of an entry point that the emulator has.
EMU_API CUresult cuGetProcAddress_v2(const char* symbol, void** entry, int, uint64_t, int* status) {
  *entry = nullptr;
  for (const char* suffix : {"_v4", "_v3", "_v2", ""}) {
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&cuGetErrorName), &self);
    void* library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *entry = dlsym(library, (std::string(symbol) + suffix).c_str());
    dlclose(library);
    if (*entry) break;
  }
  if (status) *status = *entry ? 0 : 1;
  return *entry ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

#define REFUSE(name)                              \
  EMU_API CUresult name() {                       \
    EMU_ENTER(#name, NOTHING);                    \
    return CUDA_ERROR_NOT_SUPPORTED;              \
  }

REFUSE(cuArray3DCreate_v2) REFUSE(cuArray3DGetDescriptor_v2) REFUSE(cuArrayCreate_v2) REFUSE(cuArrayDestroy)
REFUSE(cuArrayGetDescriptor_v2) REFUSE(cuCtxDisablePeerAccess) REFUSE(cuCtxEnablePeerAccess)
REFUSE(cuCtxGetSharedMemConfig) REFUSE(cuCtxSetSharedMemConfig) REFUSE(cuFuncGetAttribute)
REFUSE(cuFuncSetAttribute) REFUSE(cuFuncSetBlockShape) REFUSE(cuFuncSetCacheConfig)
REFUSE(cuFuncSetSharedSize) REFUSE(cuIpcCloseMemHandle) REFUSE(cuIpcGetEventHandle) REFUSE(cuIpcGetMemHandle)
REFUSE(cuIpcOpenEventHandle) REFUSE(cuIpcOpenMemHandle_v2) REFUSE(cuLaunch) REFUSE(cuLaunchGrid)
REFUSE(cuLaunchGridAsync) REFUSE(cuLaunchKernel) REFUSE(cuLinkAddData_v2) REFUSE(cuLinkAddFile_v2)
REFUSE(cuLinkComplete) REFUSE(cuLinkCreate_v2) REFUSE(cuLinkDestroy) REFUSE(cuMemcpy3DAsync_v2)
REFUSE(cuMemcpy3DPeer) REFUSE(cuMemcpy3DPeerAsync) REFUSE(cuMemcpy3D_v2) REFUSE(cuMemcpyAtoA_v2)
REFUSE(cuMemcpyAtoD_v2) REFUSE(cuMemcpyAtoH_v2) REFUSE(cuMemcpyDtoA_v2) REFUSE(cuMemcpyHtoA_v2)
REFUSE(cuMemcpyPeer) REFUSE(cuMemcpyPeerAsync) REFUSE(cuModuleGetFunction) REFUSE(cuModuleGetGlobal_v2)
REFUSE(cuModuleGetSurfRef) REFUSE(cuModuleGetTexRef) REFUSE(cuModuleLoad) REFUSE(cuModuleLoadData)
REFUSE(cuModuleLoadDataEx) REFUSE(cuModuleUnload) REFUSE(cuParamSetSize) REFUSE(cuParamSetTexRef)
REFUSE(cuParamSetf) REFUSE(cuParamSeti) REFUSE(cuParamSetv) REFUSE(cuProfilerInitialize)
REFUSE(cuSurfRefGetArray) REFUSE(cuSurfRefSetArray) REFUSE(cuTexRefCreate) REFUSE(cuTexRefDestroy)
REFUSE(cuTexRefGetAddressMode) REFUSE(cuTexRefGetAddress_v2) REFUSE(cuTexRefGetArray)
REFUSE(cuTexRefGetFilterMode) REFUSE(cuTexRefGetFlags) REFUSE(cuTexRefGetFormat)
REFUSE(cuTexRefSetAddress2D_v3) REFUSE(cuTexRefSetAddressMode) REFUSE(cuTexRefSetAddress_v2)
REFUSE(cuTexRefSetArray) REFUSE(cuTexRefSetFilterMode) REFUSE(cuTexRefSetFlags) REFUSE(cuTexRefSetFormat)
