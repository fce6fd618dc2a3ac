// Initialisation, devices, primary and ordinary contexts, the stack of contexts of each thread.
#include <cstdio>
#include <cstring>

#include "emulator.h"

using namespace emu;

namespace emu {

static std::shared_ptr<Context> make_context(int device, bool primary, unsigned flags) {
  auto c = std::make_shared<Context>();
  c->handle = new_handle();
  c->device = device;
  c->primary = primary;
  c->flags = flags;
  c->legacy = make_stream(c, 0, nullptr);
  g().contexts[c->handle] = c;
  return c;
}

// Waits for the work under way, then gives back whatever the context still owns, as the driver does. A broken context
// has no work to wait for, and waiting for a Python kernel under way would lock up: pycuda holds the GIL here.
void destroy_context(Lock& lk, std::shared_ptr<Context> c) {
  State& S = g();
  if (!c->sticky) wait_context(lk, c.get());
  c->dead = true;
  S.contexts.erase(c->handle);
  for (auto it = S.streams.begin(); it != S.streams.end();) {
    if (it->second->ctx == c) {
      close_stream(*it->second);
      it = S.streams.erase(it);
    } else {
      ++it;
    }
  }
  for (auto it = S.events.begin(); it != S.events.end();)
    it = it->second->ctx == c ? S.events.erase(it) : std::next(it);
  for (auto& [handle, exec] : S.execs)
    if (exec->ctx == c) {
      for (auto& [lane, own] : exec->lanes) close_stream(*own);
      exec->lanes.clear();
    }
  for (auto* table : {&S.graphs, &S.execs})
    for (auto it = table->begin(); it != table->end();) it = it->second->ctx == c ? table->erase(it) : std::next(it);
  for (auto it = S.allocations.begin(); it != S.allocations.end();) {
    auto here = it++;
    if (here->second.ctx == c) free_allocation(here);
  }
  for (auto it = S.pinned.begin(); it != S.pinned.end();) {
    auto here = it++;
    if (here->second.ctx == c) free_pinned(here);
  }
  close_stream(*c->legacy);
  c->legacy.reset();
}

static bool bad_device(CUdevice d) { return d < 0 || d >= g().device_count; }

}  // namespace emu

EMU_API CUresult cuInit(unsigned flags) {
  EMU_ENTER("cuInit", NOTHING);
  if (flags) return CUDA_ERROR_INVALID_VALUE;
  Lock lk(g().mu);
  if (!g().enabled || g().device_count == 0) return CUDA_ERROR_NO_DEVICE;
  g().initialised = true;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDriverGetVersion(int* version) {
  EMU_ENTER("cuDriverGetVersion", NOTHING);
  *version = g().driver_version;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDeviceGetCount(int* count) {
  EMU_ENTER("cuDeviceGetCount", INIT);
  *count = g().device_count;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  EMU_ENTER("cuDeviceGet", INIT);
  if (bad_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDeviceGetName(char* name, int len, CUdevice d) {
  EMU_ENTER("cuDeviceGetName", INIT);
  if (bad_device(d)) return CUDA_ERROR_INVALID_DEVICE;
  std::snprintf(name, size_t(len), "Emulated CUDA device %d", d);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDeviceGetPCIBusId(char* id, int len, CUdevice d) {
  EMU_ENTER("cuDeviceGetPCIBusId", INIT);
  if (bad_device(d)) return CUDA_ERROR_INVALID_DEVICE;
  std::snprintf(id, size_t(len), "0000:%02d:00.0", d + 1);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDeviceGetByPCIBusId(CUdevice* d, const char* id) {
  EMU_ENTER("cuDeviceGetByPCIBusId", INIT);
  int bus = 0;
  if (std::sscanf(id, "0000:%d:00.0", &bus) != 1 || bad_device(bus - 1)) return CUDA_ERROR_INVALID_DEVICE;
  *d = bus - 1;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice d) {
  EMU_ENTER("cuDeviceComputeCapability", INIT);
  if (bad_device(d)) return CUDA_ERROR_INVALID_DEVICE;
  *major = 8;
  *minor = 9;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice d) {
  EMU_ENTER("cuDeviceTotalMem_v2", INIT);
  if (bad_device(d)) return CUDA_ERROR_INVALID_DEVICE;
  *bytes = g().total_memory;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice d) {
  EMU_ENTER("cuDeviceGetAttribute", INIT);
  if (bad_device(d)) return CUDA_ERROR_INVALID_DEVICE;
  switch (attribute) {
    case 1: *value = 1024; break;         // MAX_THREADS_PER_BLOCK
    case 10: *value = 32; break;          // WARP_SIZE
    case 13: *value = 1500000; break;     // CLOCK_RATE
    case 15: *value = 1; break;           // GPU_OVERLAP
    case 16: *value = 4; break;           // MULTIPROCESSOR_COUNT
    case 19: *value = 1; break;           // CAN_MAP_HOST_MEMORY
    case 31: *value = 1; break;           // CONCURRENT_KERNELS
    case 40: *value = 2; break;           // ASYNC_ENGINE_COUNT
    case 41: *value = 1; break;           // UNIFIED_ADDRESSING
    case 75: *value = 8; break;           // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = 9; break;           // COMPUTE_CAPABILITY_MINOR
    case 83: *value = 1; break;           // MANAGED_MEMORY
    default: *value = 0;
  }
  return attribute > 0 && attribute < 200 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EMU_API CUresult cuDeviceCanAccessPeer(int* can, CUdevice a, CUdevice b) {
  EMU_ENTER("cuDeviceCanAccessPeer", INIT);
  if (bad_device(a) || bad_device(b)) return CUDA_ERROR_INVALID_DEVICE;
  *can = 0;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDevicePrimaryCtxRetain(CUcontext* ctx, CUdevice d) {
  EMU_ENTER("cuDevicePrimaryCtxRetain", INIT);
  if (bad_device(d)) return CUDA_ERROR_INVALID_DEVICE;
  Lock lk(g().mu);
  auto& c = g().primaries[d];
  if (!c || c->dead) c = make_context(d, true, 0);
  ++c->retained;
  *ctx = c->handle;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) {
  EMU_ENTER("cuDevicePrimaryCtxRelease_v2", INIT);
  if (bad_device(d)) return CUDA_ERROR_INVALID_DEVICE;
  Lock lk(g().mu);
  auto it = g().primaries.find(d);
  if (it == g().primaries.end() || it->second->retained == 0) {
    hazard("primary context released more often than retained");
    return CUDA_ERROR_INVALID_CONTEXT;
  }
  if (--it->second->retained == 0 && !it->second->dead) destroy_context(lk, it->second);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDevicePrimaryCtxReset_v2(CUdevice d) {
  EMU_ENTER("cuDevicePrimaryCtxReset_v2", INIT);
  if (bad_device(d)) return CUDA_ERROR_INVALID_DEVICE;
  Lock lk(g().mu);
  auto it = g().primaries.find(d);
  if (it != g().primaries.end() && !it->second->dead) destroy_context(lk, it->second);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned* flags, int* active) {
  EMU_ENTER("cuDevicePrimaryCtxGetState", INIT);
  if (bad_device(d)) return CUDA_ERROR_INVALID_DEVICE;
  Lock lk(g().mu);
  auto it = g().primaries.find(d);
  *active = it != g().primaries.end() && !it->second->dead;
  *flags = *active ? it->second->flags : 0;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxCreate_v4(CUcontext* ctx, void*, unsigned flags, CUdevice d) {
  EMU_ENTER("cuCtxCreate_v4", INIT);
  if (bad_device(d)) return CUDA_ERROR_INVALID_DEVICE;
  Lock lk(g().mu);
  auto c = make_context(d, false, flags);
  c->retained = 1;
  stack.push_back(c);
  *ctx = c->handle;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxCreate_v2(CUcontext* ctx, unsigned flags, CUdevice d) { return cuCtxCreate_v4(ctx, nullptr, flags, d); }

EMU_API CUresult cuCtxDestroy_v2(CUcontext ctx) {
  EMU_ENTER("cuCtxDestroy_v2", INIT);
  Lock lk(g().mu);
  auto it = g().contexts.find(ctx);
  if (it == g().contexts.end() || it->second->primary) return CUDA_ERROR_INVALID_CONTEXT;
  auto c = it->second;
  if (!stack.empty() && stack.back() == c) stack.pop_back();
  destroy_context(lk, c);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxAttach(CUcontext* ctx, unsigned flags) {
  EMU_ENTER("cuCtxAttach", CONTEXT);
  if (flags) return CUDA_ERROR_INVALID_VALUE;
  ++current()->retained;
  *ctx = current()->handle;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxDetach(CUcontext ctx) {
  EMU_ENTER("cuCtxDetach", INIT);
  {
    Lock lk(g().mu);
    auto it = g().contexts.find(ctx);
    if (it == g().contexts.end() || it->second->primary) return CUDA_ERROR_INVALID_CONTEXT;
    if (--it->second->retained > 0) return CUDA_SUCCESS;
  }
  return cuCtxDestroy_v2(ctx);
}

EMU_API CUresult cuCtxPushCurrent_v2(CUcontext ctx) {
  EMU_ENTER("cuCtxPushCurrent_v2", INIT);
  Lock lk(g().mu);
  auto it = g().contexts.find(ctx);
  if (it == g().contexts.end()) return CUDA_ERROR_INVALID_CONTEXT;
  stack.push_back(it->second);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxPopCurrent_v2(CUcontext* ctx) {
  // It may also tell what earlier work came to; the context is popped all the same.
  static Api& a = api("cuCtxPopCurrent_v2");
  a.calls.fetch_add(1, std::memory_order_relaxed);
  if (!g().initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (ctx) *ctx = stack.back() ? stack.back()->handle : nullptr;
  int code = 0;
  {
    Lock lk(g().mu);
    take_injected(a, &code);
  }
  stack.pop_back();
  return code;
}

EMU_API CUresult cuCtxSetCurrent(CUcontext ctx) {
  EMU_ENTER("cuCtxSetCurrent", INIT);
  Lock lk(g().mu);
  if (!ctx) {
    if (!stack.empty()) stack.pop_back();
    return CUDA_SUCCESS;
  }
  auto it = g().contexts.find(ctx);
  if (it == g().contexts.end()) return CUDA_ERROR_INVALID_CONTEXT;
  if (stack.empty()) stack.push_back(nullptr);
  stack.back() = it->second;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxGetCurrent(CUcontext* ctx) {
  EMU_ENTER("cuCtxGetCurrent", INIT);
  *ctx = current() ? current()->handle : nullptr;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxGetDevice(CUdevice* d) {
  EMU_ENTER("cuCtxGetDevice", CONTEXT);
  *d = current()->device;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxGetFlags(unsigned* flags) {
  EMU_ENTER("cuCtxGetFlags", CONTEXT);
  *flags = current()->flags;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxGetApiVersion(CUcontext ctx, unsigned* version) {
  EMU_ENTER("cuCtxGetApiVersion", INIT);
  Lock lk(g().mu);
  if (ctx && !g().contexts.count(ctx)) return CUDA_ERROR_INVALID_CONTEXT;
  *version = 3020;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxSynchronize() {
  EMU_ENTER("cuCtxSynchronize", CONTEXT);
  Lock lk(g().mu);
  auto c = current();
  if (CUresult r = capturing_in(*c)) return r;
  wait_context(lk, c.get());
  return c->sticky;
}

EMU_API CUresult cuCtxGetLimit(size_t* value, int) {
  EMU_ENTER("cuCtxGetLimit", CONTEXT);
  *value = 8 << 20;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxSetLimit(int, size_t) {
  EMU_ENTER("cuCtxSetLimit", CONTEXT);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxGetCacheConfig(int* config) {
  EMU_ENTER("cuCtxGetCacheConfig", CONTEXT);
  *config = 0;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuCtxSetCacheConfig(int) {
  EMU_ENTER("cuCtxSetCacheConfig", CONTEXT);
  return CUDA_SUCCESS;
}
