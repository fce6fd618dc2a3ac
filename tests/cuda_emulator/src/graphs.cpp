// Stream capture and graphs: one stream a capture, the work launched again in the order it was captured.
#include <algorithm>

#include "emulator.h"

using namespace emu;

namespace emu {

CUresult unsafe_in_capture() {
  bool refused = false;
  if (capture_mode == CAPTURE_RELAXED) return CUDA_SUCCESS;
  for (auto& c : g().captures) {
    const bool own = c->thread == std::this_thread::get_id() && c->mode != CAPTURE_RELAXED;
    if (own || (c->mode == CAPTURE_GLOBAL && capture_mode == CAPTURE_GLOBAL)) {
      c->invalidated = true;
      refused = true;
    }
  }
  return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult capturing_in(const Context& c) {
  bool refused = false;
  for (auto& [handle, s] : g().streams)
    if (s->ctx.get() == &c && s->capture) {
      s->capture->invalidated = true;
      refused = true;
    }
  return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

void drop_capture(Stream& s) {
  auto capture = s.capture;
  s.capture.reset();
  s.tips.clear();
  if (!capture || capture->origin != s.id) return;
  auto& all = g().captures;
  all.erase(std::remove(all.begin(), all.end(), capture), all.end());
  for (auto& other : capture->joined) drop_capture(*other);
}

CUresult submit(Lock& lk, Stream& s, std::shared_ptr<Work> w, bool block) {
  if (s.capture) {
    if (s.capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    Node node{std::move(w), s.id, {}};
    for (auto& [lane, count] : s.tips)
      if (count) node.behind.push_back(count - 1);
    s.capture->nodes.push_back(std::move(node));
    s.tips[s.id] = s.capture->nodes.size();
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
  s->capture = std::make_shared<Capture>(Capture{mode, std::this_thread::get_id(), s->id, false, {}, {}});
  s->tips.clear();
  g().captures.push_back(s->capture);
  return CUDA_SUCCESS;
}

// The works of the capture, which is over whatever the call returns: a failure that a test asked for must not leave
// the stream in capture, as a real one does not.
static CUresult end_capture(CUstream handle, std::shared_ptr<Stream>* s, std::vector<Node>* nodes) {
  if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
  if (CUresult r = find_stream(handle, s)) return r;
  auto c = (*s)->capture;
  if (!c || c->origin != (*s)->id) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  if (c->mode != CAPTURE_RELAXED && c->thread != std::this_thread::get_id()) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  bool unjoined = false;
  for (auto& other : c->joined) unjoined |= other->tips[other->id] > (*s)->tips[other->id];
  drop_capture(**s);
  if (c->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (unjoined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  *nodes = c->nodes;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuStreamEndCapture(CUstream handle, CUgraph* out) {
  *out = nullptr;
  std::shared_ptr<Stream> s;
  std::vector<Node> nodes;
  CUresult ended;
  {
    Lock lk(g().mu);
    ended = end_capture(handle, &s, &nodes);
  }
  EMU_ENTER("cuStreamEndCapture", CONTEXT);
  if (ended) return ended;
  Lock lk(g().mu);
  static uint64_t next = 1;
  *out = new_handle();
  g().graphs[*out] = std::make_shared<Graph>(Graph{next++, s->ctx, s->id, nodes, {}, nullptr});
  return CUDA_SUCCESS;
}

EMU_API CUresult cuStreamIsCapturing(CUstream handle, int* status) {
  EMU_ENTER("cuStreamIsCapturing", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  if (s == s->ctx->legacy)
    for (auto& [h, other] : g().streams)
      if (other->ctx == s->ctx && other->capture && !(other->flags & CU_STREAM_NON_BLOCKING))
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  *status = !s->capture ? 0 : s->capture->invalidated ? 2 : 1;
  return CUDA_SUCCESS;
}

EMU_API CUresult cuGraphGetNodes(CUgraph graph, void** nodes, size_t* count) {
  EMU_ENTER("cuGraphGetNodes", CONTEXT);
  Lock lk(g().mu);
  auto it = g().graphs.find(graph);
  if (it == g().graphs.end()) return CUDA_ERROR_INVALID_HANDLE;
  if (nodes) return CUDA_ERROR_NOT_SUPPORTED;
  *count = it->second->nodes.size();
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

// What was captured on other streams runs on streams of the graph: behind what is in `s`, and `s` goes on behind it.
static void launch(Stream& s, Graph& graph) {
  std::vector<std::shared_ptr<Op>> ops, roots;
  if (graph.last) roots.push_back(graph.last);
  auto start = enqueue(s, std::make_shared<Work>(), roots, graph.id);
  std::vector<std::shared_ptr<Op>> ends;
  for (const Node& node : graph.nodes) {
    Stream* lane = &s;
    std::vector<std::shared_ptr<Op>> after;
    if (node.lane != graph.origin) {
      auto& own = graph.lanes[node.lane];
      if (!own) {
        own = make_stream(s.ctx, CU_STREAM_NON_BLOCKING, nullptr);
        own->hidden = true;
      }
      lane = own.get();
      after.push_back(start);
    }
    for (size_t index : node.behind) after.push_back(ops[index]);
    ops.push_back(enqueue(*lane, node.work, after, graph.id));
    if (lane != &s) ends.push_back(ops.back());
  }
  graph.last = ends.empty() && !ops.empty() ? ops.back() : enqueue(s, std::make_shared<Work>(), ends, graph.id);
}

EMU_API CUresult cuThreadExchangeStreamCaptureMode(int* mode) {
  EMU_ENTER("cuThreadExchangeStreamCaptureMode", INIT);
  if (*mode < CAPTURE_GLOBAL || *mode > CAPTURE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
  std::swap(*mode, capture_mode);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuGraphLaunch(CUgraphExec exec, CUstream handle) {
  EMU_ENTER("cuGraphLaunch", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(handle, &s)) return r;
  auto it = g().execs.find(exec);
  if (it == g().execs.end()) return CUDA_ERROR_INVALID_HANDLE;
  if (s->capture) return CUDA_ERROR_NOT_SUPPORTED;
  launch(*s, *it->second);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuGraphExecDestroy(CUgraphExec exec) {
  EMU_ENTER("cuGraphExecDestroy", CONTEXT);
  Lock lk(g().mu);
  auto it = g().execs.find(exec);
  if (it == g().execs.end()) return CUDA_ERROR_INVALID_HANDLE;
  for (auto& [lane, own] : it->second->lanes) close_stream(*own);
  it->second->lanes.clear();
  g().execs.erase(it);
  return CUDA_SUCCESS;
}

EMU_API CUresult cuGraphDestroy(CUgraph graph) {
  EMU_ENTER("cuGraphDestroy", CONTEXT);
  Lock lk(g().mu);
  return g().graphs.erase(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
