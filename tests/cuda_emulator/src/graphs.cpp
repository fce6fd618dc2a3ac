// Stream capture and graphs: one stream a capture, the work launched again in the order it was captured.
#include <algorithm>

#include "emulator.h"

using namespace emu;

namespace emu {

CUresult unsafe_in_capture() {
  bool refused = false;
  for (auto& c : g().captures)
    if (c->mode == CAPTURE_GLOBAL || (c->mode == CAPTURE_THREAD_LOCAL && c->thread == std::this_thread::get_id())) {
      c->invalidated = true;
      refused = true;
    }
  return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

void drop_capture(Stream& s) {
  auto& all = g().captures;
  all.erase(std::remove(all.begin(), all.end(), s.capture), all.end());
  s.capture.reset();
}

CUresult submit(Lock& lk, Stream& s, std::shared_ptr<Work> w, bool block) {
  if (s.capture) {
    if (s.capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    s.capture->works.push_back(std::move(w));
    return CUDA_SUCCESS;
  }
  auto op = enqueue(s, std::move(w));
  if (block) wait_op(lk, op);
  return CUDA_SUCCESS;
}

}  // namespace emu

EMU_API CUresult cuStreamBeginCapture_v2(CUstream handle, int mode) {
  EMU_ENTER("cuStreamBeginCapture_v2", CONTEXT);
  if (mode < CAPTURE_GLOBAL || mode > CAPTURE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  if (s == s->ctx->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (s->capture) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  s->capture = std::make_shared<Capture>(Capture{mode, std::this_thread::get_id(), false, {}});
  g().captures.push_back(s->capture);
  return CUDA_SUCCESS;
}

// The works of the capture, which is over whatever the call returns: a failure that a test asked for must not leave
// the stream in capture, as a real one does not.
static CUresult end_capture(CUstream handle, std::shared_ptr<Stream>* s, std::vector<std::shared_ptr<Work>>* works) {
  if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
  if (CUresult r = find_stream(handle, s)) return r;
  auto c = (*s)->capture;
  if (!c) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  if (c->mode != CAPTURE_RELAXED && c->thread != std::this_thread::get_id()) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  drop_capture(**s);
  if (c->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  *works = c->works;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuStreamEndCapture(CUstream handle, CUgraph* out) {
  *out = nullptr;
  std::shared_ptr<Stream> s;
  std::vector<std::shared_ptr<Work>> works;
  CUresult ended;
  {
    Lock lk(g().mu);
    ended = end_capture(handle, &s, &works);
  }
  EMU_ENTER("cuStreamEndCapture", CONTEXT);
  if (ended) return ended;
  Lock lk(g().mu);
  static uint64_t next = 1;
  *out = new_handle();
  g().graphs[*out] = std::make_shared<Graph>(Graph{next++, s->ctx, works});
  return CUDA_SUCCESS;
}

EMU_API CUresult cuStreamIsCapturing(CUstream handle, int* status) {
  EMU_ENTER("cuStreamIsCapturing", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  *status = !s->capture ? 0 : s->capture->invalidated ? 2 : 1;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuGraphGetNodes(CUgraph graph, void** nodes, size_t* count) {
  EMU_ENTER("cuGraphGetNodes", CONTEXT);
  Lock lk(g().mu);
  auto it = g().graphs.find(graph);
  if (it == g().graphs.end()) return CUDA_ERROR_INVALID_HANDLE;
  if (nodes) return CUDA_ERROR_NOT_SUPPORTED;
  *count = it->second->works.size();
  return CUDA_SUCCESS;
}

EMU_API CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long flags) {
  EMU_ENTER("cuGraphInstantiateWithFlags", CONTEXT);
  if (flags) return CUDA_ERROR_INVALID_VALUE;
  Lock lk(g().mu);
  auto it = g().graphs.find(graph);
  if (it == g().graphs.end()) return CUDA_ERROR_INVALID_HANDLE;
  *exec = new_handle();
  g().execs[*exec] = it->second;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuGraphUpload(CUgraphExec exec, CUstream) {
  EMU_ENTER("cuGraphUpload", CONTEXT);
  Lock lk(g().mu);
  return g().execs.count(exec) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

EMU_API CUresult cuGraphLaunch(CUgraphExec exec, CUstream handle) {
  EMU_ENTER("cuGraphLaunch", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  auto it = g().execs.find(exec);
  if (it == g().execs.end()) return CUDA_ERROR_INVALID_HANDLE;
  if (s->capture) return CUDA_ERROR_NOT_SUPPORTED;
  for (auto& w : it->second->works) enqueue(*s, w, {}, it->second->id);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuGraphExecDestroy(CUgraphExec exec) {
  EMU_ENTER("cuGraphExecDestroy", CONTEXT);
  Lock lk(g().mu);
  return g().execs.erase(exec) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

EMU_API CUresult cuGraphDestroy(CUgraph graph) {
  EMU_ENTER("cuGraphDestroy", CONTEXT);
  Lock lk(g().mu);
  return g().graphs.erase(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
