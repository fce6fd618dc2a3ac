// Copies and fills.
//
// A copy fills its destination with 0xCB when it starts and moves the bytes when it ends, so that reading the
// destination too early, and overwriting the source too early, both give wrong bytes.
#include <cstring>

#include "emulator.h"

using namespace emu;

namespace {

struct Side {
  uint8_t* bytes;
  uint64_t address;
  size_t pitch;
  std::shared_ptr<uint8_t[]> keep;
};

CUresult device_side(Side* s, CUdeviceptr p, size_t offset, size_t span, size_t pitch) {
  s->address = p + offset;
  s->pitch = pitch;
  s->bytes = device_bytes(s->address, span, &s->keep);
  if (!s->bytes && is_pinned(reinterpret_cast<void*>(s->address), span, &s->keep))
    s->bytes = reinterpret_cast<uint8_t*>(s->address);
  return s->bytes ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

void host_side(Side* s, const void* p, size_t offset, size_t pitch) {
  s->address = reinterpret_cast<uint64_t>(p) + offset;
  s->pitch = pitch;
  s->bytes = reinterpret_cast<uint8_t*>(s->address);
}

size_t span_of(size_t pitch, size_t width, size_t height) { return pitch * (height - 1) + width; }

std::shared_ptr<Work> copy_work(Kind kind, const Side& dst, const Side& src, size_t width, size_t height, bool pageable) {
  auto w = std::make_shared<Work>();
  w->kind = kind;
  w->engine = kind == H2D ? ENGINE_H2D : kind == D2H ? ENGINE_D2H : ENGINE_COMPUTE;
  w->bytes = width * height;
  w->pageable = pageable;
  w->ranges = {{src.address, src.address + span_of(src.pitch, width, height), false},
               {dst.address, dst.address + span_of(dst.pitch, width, height), true}};
  w->begin = [=] {
    for (size_t y = 0; y < height; ++y) std::memset(dst.bytes + y * dst.pitch, 0xCB, width);
  };
  w->end = [=] {
    for (size_t y = 0; y < height; ++y) std::memmove(dst.bytes + y * dst.pitch, src.bytes + y * src.pitch, width);
  };
  return w;
}

// From pageable memory the driver copies into memory of its own at once, and the call returns before the device has it.
void stage(Work& w, const Side& dst, Side src, size_t width, size_t height) {
  auto bytes = std::make_shared<std::vector<uint8_t>>(width * height);
  for (size_t y = 0; y < height; ++y) std::memcpy(bytes->data() + y * width, src.bytes + y * src.pitch, width);
  w.ranges.erase(w.ranges.begin());
  w.end = [=] {
    for (size_t y = 0; y < height; ++y) std::memcpy(dst.bytes + y * dst.pitch, bytes->data() + y * width, width);
  };
}

CUresult run(Lock& lk, std::shared_ptr<Work> w, CUstream stream, bool sync) {
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(stream, &s)) return r;
  if (sync)
    if (CUresult r = unsafe_in_capture()) return r;
  const bool staged = w->pageable && w->kind == H2D;
  if (staged && sync) wait_stream(lk, *s);
  const bool block = !staged && (sync || w->pageable);
  if (CUresult r = submit(lk, *s, std::move(w), block)) return r;
  return sync ? CUresult(current()->sticky) : CUDA_SUCCESS;
}

CUresult copy_line(Kind kind, CUdeviceptr dst_d, void* dst_h, CUdeviceptr src_d, const void* src_h, size_t n, CUstream stream,
                   bool sync) {
  if (n == 0) return CUDA_SUCCESS;
  Lock lk(g().mu);
  Side dst{}, src{};
  bool pageable = false;
  if (dst_h) {
    host_side(&dst, dst_h, 0, n);
    pageable = !is_pinned(dst_h, n, &dst.keep);
  } else if (CUresult r = device_side(&dst, dst_d, 0, n, n)) {
    return r;
  }
  if (src_h) {
    host_side(&src, src_h, 0, n);
    pageable = !is_pinned(src_h, n, &src.keep) || pageable;
  } else if (CUresult r = device_side(&src, src_d, 0, n, n)) {
    return r;
  }
  auto w = copy_work(kind, dst, src, n, 1, pageable);
  if (pageable && kind == H2D) stage(*w, dst, src, n, 1);
  return run(lk, w, stream, sync);
}

CUresult copy_2d(const CUDA_MEMCPY2D* c, CUstream stream, bool sync) {
  if (c->WidthInBytes == 0 || c->Height == 0) return CUDA_SUCCESS;
  Lock lk(g().mu);
  Side dst{}, src{};
  bool pageable = false;
  const size_t w = c->WidthInBytes, h = c->Height;
  const size_t sp = c->srcPitch ? c->srcPitch : w, dp = c->dstPitch ? c->dstPitch : w;
  if (sp < w || dp < w) return CUDA_ERROR_INVALID_VALUE;
  const size_t so = c->srcY * sp + c->srcXInBytes, dof = c->dstY * dp + c->dstXInBytes;
  if (c->srcMemoryType == MEMORY_DEVICE) {
    if (CUresult r = device_side(&src, c->srcDevice, so, span_of(sp, w, h), sp)) return r;
  } else if (c->srcMemoryType == MEMORY_HOST) {
    host_side(&src, c->srcHost, so, sp);
    pageable = !is_pinned(src.bytes, span_of(sp, w, h), &src.keep);
  } else {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  if (c->dstMemoryType == MEMORY_DEVICE) {
    if (CUresult r = device_side(&dst, c->dstDevice, dof, span_of(dp, w, h), dp)) return r;
  } else if (c->dstMemoryType == MEMORY_HOST) {
    host_side(&dst, c->dstHost, dof, dp);
    pageable = !is_pinned(dst.bytes, span_of(dp, w, h), &dst.keep) || pageable;
  } else {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  const bool from_host = c->srcMemoryType == MEMORY_HOST, to_host = c->dstMemoryType == MEMORY_HOST;
  const Kind kind = from_host && !to_host ? H2D : to_host && !from_host ? D2H : D2D;
  auto work = copy_work(kind, dst, src, w, h, pageable);
  if (pageable && kind == H2D) stage(*work, dst, src, w, h);
  return run(lk, work, stream, sync);
}

template <class T>
CUresult fill(CUdeviceptr p, size_t pitch, T value, size_t width, size_t height, CUstream stream, bool sync) {
  if (width == 0 || height == 0) return CUDA_SUCCESS;
  Lock lk(g().mu);
  if (p % sizeof(T)) return CUDA_ERROR_INVALID_VALUE;
  const size_t span = span_of(pitch, width * sizeof(T), height);
  Side dst{};
  if (CUresult r = device_side(&dst, p, 0, span, pitch)) return r;
  auto w = std::make_shared<Work>();
  w->kind = MEMSET;
  w->engine = ENGINE_COMPUTE;
  w->bytes = width * height * sizeof(T);
  w->ranges = {{dst.address, dst.address + span, true}};
  w->end = [=] {
    for (size_t y = 0; y < height; ++y)
      for (size_t x = 0; x < width; ++x) std::memcpy(dst.bytes + y * pitch + x * sizeof(T), &value, sizeof(T));
  };
  return run(lk, w, stream, sync);
}

}  // namespace

EMU_API CUresult cuMemcpyHtoD_v2(CUdeviceptr d, const void* s, size_t n) {
  EMU_ENTER("cuMemcpyHtoD_v2", CONTEXT);
  return copy_line(H2D, d, nullptr, 0, s, n, nullptr, true);
}

EMU_API CUresult cuMemcpyDtoH_v2(void* d, CUdeviceptr s, size_t n) {
  EMU_ENTER("cuMemcpyDtoH_v2", CONTEXT);
  return copy_line(D2H, 0, d, s, nullptr, n, nullptr, true);
}

EMU_API CUresult cuMemcpyDtoD_v2(CUdeviceptr d, CUdeviceptr s, size_t n) {
  EMU_ENTER("cuMemcpyDtoD_v2", CONTEXT);
  return copy_line(D2D, d, nullptr, s, nullptr, n, nullptr, true);
}

EMU_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void* s, size_t n, CUstream st) {
  EMU_ENTER("cuMemcpyHtoDAsync_v2", CONTEXT);
  return copy_line(H2D, d, nullptr, 0, s, n, st, false);
}

EMU_API CUresult cuMemcpyDtoHAsync_v2(void* d, CUdeviceptr s, size_t n, CUstream st) {
  EMU_ENTER("cuMemcpyDtoHAsync_v2", CONTEXT);
  return copy_line(D2H, 0, d, s, nullptr, n, st, false);
}

EMU_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream st) {
  EMU_ENTER("cuMemcpyDtoDAsync_v2", CONTEXT);
  return copy_line(D2D, d, nullptr, s, nullptr, n, st, false);
}

EMU_API CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D* c) {
  EMU_ENTER("cuMemcpy2D_v2", CONTEXT);
  return copy_2d(c, nullptr, true);
}

EMU_API CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D* c) {
  EMU_ENTER("cuMemcpy2DUnaligned_v2", CONTEXT);
  return copy_2d(c, nullptr, true);
}

EMU_API CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* c, CUstream st) {
  EMU_ENTER("cuMemcpy2DAsync_v2", CONTEXT);
  return copy_2d(c, st, false);
}

EMU_API CUresult cuMemsetD8_v2(CUdeviceptr p, uint8_t v, size_t n) {
  EMU_ENTER("cuMemsetD8_v2", CONTEXT);
  return fill<uint8_t>(p, n * 1, v, n, 1, nullptr, true);
}

EMU_API CUresult cuMemsetD8Async(CUdeviceptr p, uint8_t v, size_t n, CUstream st) {
  EMU_ENTER("cuMemsetD8Async", CONTEXT);
  return fill<uint8_t>(p, n * 1, v, n, 1, st, false);
}

EMU_API CUresult cuMemsetD2D8_v2(CUdeviceptr p, size_t pitch, uint8_t v, size_t w, size_t h) {
  EMU_ENTER("cuMemsetD2D8_v2", CONTEXT);
  return fill<uint8_t>(p, pitch, v, w, h, nullptr, true);
}

EMU_API CUresult cuMemsetD2D8Async(CUdeviceptr p, size_t pitch, uint8_t v, size_t w, size_t h, CUstream st) {
  EMU_ENTER("cuMemsetD2D8Async", CONTEXT);
  return fill<uint8_t>(p, pitch, v, w, h, st, false);
}

EMU_API CUresult cuMemsetD16_v2(CUdeviceptr p, uint16_t v, size_t n) {
  EMU_ENTER("cuMemsetD16_v2", CONTEXT);
  return fill<uint16_t>(p, n * 2, v, n, 1, nullptr, true);
}

EMU_API CUresult cuMemsetD16Async(CUdeviceptr p, uint16_t v, size_t n, CUstream st) {
  EMU_ENTER("cuMemsetD16Async", CONTEXT);
  return fill<uint16_t>(p, n * 2, v, n, 1, st, false);
}

EMU_API CUresult cuMemsetD2D16_v2(CUdeviceptr p, size_t pitch, uint16_t v, size_t w, size_t h) {
  EMU_ENTER("cuMemsetD2D16_v2", CONTEXT);
  return fill<uint16_t>(p, pitch, v, w, h, nullptr, true);
}

EMU_API CUresult cuMemsetD2D16Async(CUdeviceptr p, size_t pitch, uint16_t v, size_t w, size_t h, CUstream st) {
  EMU_ENTER("cuMemsetD2D16Async", CONTEXT);
  return fill<uint16_t>(p, pitch, v, w, h, st, false);
}

EMU_API CUresult cuMemsetD32_v2(CUdeviceptr p, uint32_t v, size_t n) {
  EMU_ENTER("cuMemsetD32_v2", CONTEXT);
  return fill<uint32_t>(p, n * 4, v, n, 1, nullptr, true);
}

EMU_API CUresult cuMemsetD32Async(CUdeviceptr p, uint32_t v, size_t n, CUstream st) {
  EMU_ENTER("cuMemsetD32Async", CONTEXT);
  return fill<uint32_t>(p, n * 4, v, n, 1, st, false);
}

EMU_API CUresult cuMemsetD2D32_v2(CUdeviceptr p, size_t pitch, uint32_t v, size_t w, size_t h) {
  EMU_ENTER("cuMemsetD2D32_v2", CONTEXT);
  return fill<uint32_t>(p, pitch, v, w, h, nullptr, true);
}

EMU_API CUresult cuMemsetD2D32Async(CUdeviceptr p, size_t pitch, uint32_t v, size_t w, size_t h, CUstream st) {
  EMU_ENTER("cuMemsetD2D32Async", CONTEXT);
  return fill<uint32_t>(p, pitch, v, w, h, st, false);
}
