// Streams, events, host functions.
#include <algorithm>

#include "emulator.h"

using namespace emu;

EMU_API CUresult cuStreamCreate(CUstream* out, unsigned flags) {
  EMU_ENTER("cuStreamCreate", CONTEXT);
  if (flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  Lock lk(g().mu);
  if (g().recycling && !g().spent.empty()) {
    *out = g().spent.back();
    g().spent.pop_back();
  } else {
    *out = new_handle();
  }
  g().streams[*out] = make_stream(current(), flags, *out);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuStreamCreateWithPriority(CUstream* out, unsigned flags, int) { return cuStreamCreate(out, flags); }

EMU_API CUresult cuStreamDestroy_v2(CUstream handle) {
  EMU_ENTER("cuStreamDestroy_v2", CONTEXT);
  Lock lk(g().mu);
  auto it = g().streams.find(handle);
  if (it == g().streams.end()) return CUDA_ERROR_INVALID_HANDLE;
  close_stream(*it->second);  // work under way still finishes
  if (g().recycling) g().spent.push_back(handle);
  g().streams.erase(it);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuStreamSynchronize(CUstream handle) {
  EMU_ENTER("cuStreamSynchronize", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  if (s->capture) {
    s->capture->invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  wait_stream(lk, *s);
  return s->ctx->sticky;
}

EMU_API CUresult cuStreamQuery(CUstream handle) {
  EMU_ENTER("cuStreamQuery", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  if (s->capture) {
    s->capture->invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return s->last ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

EMU_API CUresult cuStreamGetCtx(CUstream handle, CUcontext* ctx) {
  EMU_ENTER("cuStreamGetCtx", CONTEXT);
  Lock lk(g().mu);
  if (reinterpret_cast<uintptr_t>(handle) <= 2) {
    *ctx = current()->handle;
    return CUDA_SUCCESS;
  }
  auto it = g().streams.find(handle);
  if (it == g().streams.end()) return CUDA_ERROR_INVALID_HANDLE;
  *ctx = it->second->ctx->handle;
  return CUDA_SUCCESS;
}

// Another one for each stream, also where a handle is used again.
EMU_API CUresult cuStreamGetId(CUstream handle, unsigned long long* id) {
  EMU_ENTER("cuStreamGetId", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  *id = s->id + 1ull;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned) {
  EMU_ENTER("cuStreamWaitEvent", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  auto it = g().events.find(event);
  if (it == g().events.end()) return CUDA_ERROR_INVALID_HANDLE;
  Event& e = *it->second;
  if (!s->capture && !e.captured && !e.recorded) return CUDA_SUCCESS;
  if (s->capture || e.captured) {
    if (e.captured && !s->capture && s != s->ctx->legacy) {  // the stream becomes part of the capture
      s->capture = e.captured;
      s->tips.clear();
      e.captured->joined.push_back(s);
    }
    if (s->capture && e.captured == s->capture) {
      for (auto& [lane, count] : e.tips) s->tips[lane] = std::max(s->tips[lane], count);
      return CUDA_SUCCESS;
    }
    if (s->capture) s->capture->invalidated = true;
    if (e.captured) e.captured->invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  }
  if (!e.recorded) return CUDA_SUCCESS;  // an event never recorded holds nobody up
  enqueue(*s, std::make_shared<Work>(), {e.recorded});
  return CUDA_SUCCESS;
}

EMU_API CUresult cuStreamAttachMemAsync(CUstream, CUdeviceptr, size_t, unsigned) {
  EMU_ENTER("cuStreamAttachMemAsync", CONTEXT);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuLaunchHostFunc(CUstream handle, CUhostFn fn, void* user) {
  EMU_ENTER("cuLaunchHostFunc", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  auto w = std::make_shared<Work>();
  w->kind = HOST;
  w->end = [fn, user] { fn(user); };
  return submit(lk, *s, w, false);
}

EMU_API CUresult cuEventCreate(CUevent* out, unsigned flags) {
  EMU_ENTER("cuEventCreate", CONTEXT);
  if (flags > 7) return CUDA_ERROR_INVALID_VALUE;
  Lock lk(g().mu);
  auto e = std::make_shared<Event>();
  *out = e->handle = new_handle();
  e->flags = flags;
  e->ctx = current();
  g().events[*out] = e;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuEventDestroy_v2(CUevent event) {
  EMU_ENTER("cuEventDestroy_v2", CONTEXT);
  Lock lk(g().mu);
  return g().events.erase(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

EMU_API CUresult cuEventRecord(CUevent event, CUstream handle) {
  EMU_ENTER("cuEventRecord", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  auto it = g().events.find(event);
  if (it == g().events.end() || it->second->ctx != s->ctx) return CUDA_ERROR_INVALID_HANDLE;
  Event& e = *it->second;
  e.captured = s->capture;
  e.tips = s->tips;
  if (s->capture) return s->capture->invalidated ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
  e.recorded = enqueue(*s, std::make_shared<Work>());
  return CUDA_SUCCESS;
}

EMU_API CUresult cuEventQuery(CUevent event) {
  EMU_ENTER("cuEventQuery", CONTEXT);
  Lock lk(g().mu);
  auto it = g().events.find(event);
  if (it == g().events.end()) return CUDA_ERROR_INVALID_HANDLE;
  if (CUresult r = unsafe_in_capture()) return r;
  if (it->second->captured) return CUDA_ERROR_CAPTURED_EVENT;
  return !it->second->recorded || it->second->recorded->done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EMU_API CUresult cuEventSynchronize(CUevent event) {
  EMU_ENTER("cuEventSynchronize", CONTEXT);
  Lock lk(g().mu);
  auto it = g().events.find(event);
  if (it == g().events.end()) return CUDA_ERROR_INVALID_HANDLE;
  if (it->second->captured) return CUDA_ERROR_CAPTURED_EVENT;
  auto ctx = it->second->ctx;
  std::shared_ptr<Op> op = it->second->recorded;
  wait_op(lk, op);
  return ctx->sticky;
}

EMU_API CUresult cuEventElapsedTime_v2(float* ms, CUevent start, CUevent end) {
  EMU_ENTER("cuEventElapsedTime_v2", CONTEXT);
  Lock lk(g().mu);
  auto a = g().events.find(start), b = g().events.find(end);
  if (a == g().events.end() || b == g().events.end()) return CUDA_ERROR_INVALID_HANDLE;
  auto &x = *a->second, &y = *b->second;
  if ((x.flags | y.flags) & CU_EVENT_DISABLE_TIMING || !x.recorded || !y.recorded) return CUDA_ERROR_INVALID_HANDLE;
  if (!x.recorded->done || !y.recorded->done) return CUDA_ERROR_NOT_READY;
  *ms = float(double(y.recorded->finish - x.recorded->finish) * 1e-6);
  return CUDA_SUCCESS;
}
