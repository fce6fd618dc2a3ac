// Device memory (kept in host memory, under addresses of its own), pinned host memory, pointer attributes.
//
// A device address is no host address: it is made up, so host code that follows one by mistake crashes, and it
// is never given out twice, so memory used after it was freed is found. Fresh memory is filled with 0xCB.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "emulator.h"

using namespace emu;

namespace emu {

constexpr uint8_t POISON = 0xCB, RED = 0xA5;
constexpr size_t ZONE = 256;
static uint64_t next_address = 0x200000000000;

static auto holding(uint64_t address) {
  auto& table = g().allocations;
  auto it = table.upper_bound(address);
  if (it == table.begin()) return table.end();
  --it;
  return address < it->second.base + it->second.size ? it : table.end();
}

uint8_t* device_bytes(uint64_t address, size_t size, std::shared_ptr<uint8_t[]>* keep) {
  auto it = holding(address);
  if (it == g().allocations.end() || size > it->second.base + it->second.size - address) return nullptr;
  if (keep) *keep = it->second.store;
  return it->second.host + (address - it->second.base);
}

bool is_pinned(const void* p, size_t size, std::shared_ptr<uint8_t[]>* keep) {
  const uint64_t a = reinterpret_cast<uint64_t>(p);
  auto it = g().pinned.upper_bound(a);
  if (it == g().pinned.begin()) return false;
  --it;
  if (a >= it->second.base + it->second.size || size > it->second.base + it->second.size - a) return false;
  if (keep) *keep = it->second.store;
  return true;
}

static void check_not_in_use(const Context& c, uint64_t base, size_t size, const char* what) {
  if (c.sticky) return;
  for (auto& op : g().pending)
    for (const Range& r : op->work->ranges)
      if (r.lo < base + size && base < r.hi) hazard(std::string(what) + " freed while an operation still uses it");
}

void free_allocation(std::map<uint64_t, Allocation>::iterator it) {
  Allocation& a = it->second;
  check_not_in_use(*a.ctx, a.base, a.size, "device memory");
  auto broken = [](const uint8_t* zone) { return std::any_of(zone, zone + ZONE, [](uint8_t b) { return b != RED; }); };
  if (broken(a.host - ZONE) || broken(a.host + a.size)) hazard("device memory written outside its bounds");
  g().used_memory -= a.size;
  g().allocations.erase(it);
}

void free_pinned(std::map<uint64_t, Pinned>::iterator it) {
  Pinned p = it->second;
  check_not_in_use(*p.ctx, p.base, p.size, "pinned memory");
  g().pinned.erase(it);
  if (!p.registered) std::memset(p.store.get(), 0xDD, p.size);
}

static CUresult allocate(CUdeviceptr* out, size_t size, bool managed) {
  if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  State& S = g();
  if (CUresult r = unsafe_in_capture()) return r;
  if (size > S.total_memory - std::min(S.total_memory, S.used_memory)) return CUDA_ERROR_OUT_OF_MEMORY;
  // new[] is aligned to 16; the zone is moved so that the memory itself lies on 256 bytes.
  std::shared_ptr<uint8_t[]> store(new uint8_t[size + 3 * ZONE]);
  uint8_t* host = store.get() + ZONE;
  host += (256 - reinterpret_cast<uintptr_t>(host) % 256) % 256;
  std::memset(host - ZONE, RED, ZONE);
  std::memset(host, POISON, size);
  std::memset(host + size, RED, ZONE);
  const uint64_t base = managed ? reinterpret_cast<uint64_t>(host) : next_address;
  if (!managed) next_address += (size + 0xFFF + 0x1000) & ~uint64_t(0xFFF);
  S.allocations[base] = Allocation{base, size, store, host, current(), managed};
  S.used_memory += size;
  *out = base;
  return CUDA_SUCCESS;
}

}  // namespace emu

EMU_API CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
  EMU_ENTER("cuMemGetInfo_v2", CONTEXT);
  Lock lk(g().mu);
  *total = g().total_memory;
  *free = g().total_memory - std::min(g().total_memory, g().used_memory);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuMemAlloc_v2(CUdeviceptr* p, size_t size) {
  EMU_ENTER("cuMemAlloc_v2", CONTEXT);
  Lock lk(g().mu);
  return allocate(p, size, false);
}

EMU_API CUresult cuMemAllocManaged(CUdeviceptr* p, size_t size, unsigned) {
  EMU_ENTER("cuMemAllocManaged", CONTEXT);
  Lock lk(g().mu);
  return allocate(p, size, true);
}

EMU_API CUresult cuMemAllocPitch_v2(CUdeviceptr* p, size_t* pitch, size_t width, size_t height, unsigned element) {
  EMU_ENTER("cuMemAllocPitch_v2", CONTEXT);
  if (element != 4 && element != 8 && element != 16) return CUDA_ERROR_INVALID_VALUE;
  Lock lk(g().mu);
  *pitch = (width + 511) / 512 * 512;
  return allocate(p, *pitch * height, false);
}

EMU_API CUresult cuMemFree_v2(CUdeviceptr p) {
  EMU_ENTER("cuMemFree_v2", CONTEXT);
  Lock lk(g().mu);
  if (CUresult r = unsafe_in_capture()) return r;
  if (p == 0) return CUDA_SUCCESS;
  auto it = g().allocations.find(p);
  if (it == g().allocations.end()) return CUDA_ERROR_INVALID_VALUE;
  free_allocation(it);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* size, CUdeviceptr p) {
  EMU_ENTER("cuMemGetAddressRange_v2", CONTEXT);
  Lock lk(g().mu);
  auto it = holding(p);
  if (it == g().allocations.end()) return CUDA_ERROR_NOT_FOUND;
  if (base) *base = it->second.base;
  if (size) *size = it->second.size;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuMemHostAlloc(void** p, size_t size, unsigned flags) {
  EMU_ENTER("cuMemHostAlloc", CONTEXT);
  if (size == 0 || flags > 7) return CUDA_ERROR_INVALID_VALUE;
  Lock lk(g().mu);
  if (CUresult r = unsafe_in_capture()) return r;
  auto* bytes = static_cast<uint8_t*>(std::aligned_alloc(4096, (size + 4095) / 4096 * 4096));
  if (!bytes) return CUDA_ERROR_OUT_OF_MEMORY;
  std::memset(bytes, POISON, size);
  *p = bytes;
  const uint64_t base = reinterpret_cast<uint64_t>(bytes);
  // Operations under way keep it, so that freeing it too early is a hazard and no crash of the test.
  g().pinned[base] = Pinned{base, size, flags, false, current(), std::shared_ptr<uint8_t[]>(bytes, std::free)};
  return CUDA_SUCCESS;
}

EMU_API CUresult cuMemAllocHost_v2(void** p, size_t size) { return cuMemHostAlloc(p, size, 0); }

EMU_API CUresult cuMemFreeHost(void* p) {
  EMU_ENTER("cuMemFreeHost", CONTEXT);
  Lock lk(g().mu);
  if (CUresult r = unsafe_in_capture()) return r;
  auto it = g().pinned.find(reinterpret_cast<uint64_t>(p));
  if (it == g().pinned.end() || it->second.registered) return CUDA_ERROR_INVALID_VALUE;
  free_pinned(it);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuMemHostRegister_v2(void* p, size_t size, unsigned flags) {
  EMU_ENTER("cuMemHostRegister_v2", CONTEXT);
  if (!p || size == 0) return CUDA_ERROR_INVALID_VALUE;
  Lock lk(g().mu);
  const uint64_t base = reinterpret_cast<uint64_t>(p);
  if (g().pinned.count(base)) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  g().pinned[base] = Pinned{base, size, flags, true, current(), nullptr};
  return CUDA_SUCCESS;
}

EMU_API CUresult cuMemHostUnregister(void* p) {
  EMU_ENTER("cuMemHostUnregister", CONTEXT);
  Lock lk(g().mu);
  auto it = g().pinned.find(reinterpret_cast<uint64_t>(p));
  if (it == g().pinned.end() || !it->second.registered) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  free_pinned(it);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuMemHostGetFlags(unsigned* flags, void* p) {
  EMU_ENTER("cuMemHostGetFlags", CONTEXT);
  Lock lk(g().mu);
  auto it = g().pinned.find(reinterpret_cast<uint64_t>(p));
  if (it == g().pinned.end()) return CUDA_ERROR_INVALID_VALUE;
  *flags = it->second.flags;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* d, void* p, unsigned) {
  EMU_ENTER("cuMemHostGetDevicePointer_v2", CONTEXT);
  Lock lk(g().mu);
  if (!is_pinned(p, 1)) return CUDA_ERROR_INVALID_VALUE;
  *d = reinterpret_cast<uint64_t>(p);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuPointerGetAttribute(void* data, int attribute, CUdeviceptr p) {
  EMU_ENTER("cuPointerGetAttribute", CONTEXT);
  Lock lk(g().mu);
  auto it = holding(p);
  const bool device = it != g().allocations.end();
  if (!device && !is_pinned(reinterpret_cast<void*>(p), 1)) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case 1: *static_cast<CUcontext*>(data) = device ? it->second.ctx->handle : nullptr; break;
    case 2: *static_cast<unsigned*>(data) = device ? MEMORY_DEVICE : MEMORY_HOST; break;
    case 3: *static_cast<CUdeviceptr*>(data) = p; break;
    case 9: *static_cast<int*>(data) = device ? it->second.ctx->device : 0; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}
