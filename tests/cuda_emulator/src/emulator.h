// State shared by the parts of the emulated CUDA driver.
//
// One lock, `State::mu`, guards everything here. Callbacks of the user (kernels, host functions) and the
// moving of bytes run without it. Nothing is destroyed at process exit: worker threads may still run then.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "cuda_types.h"

namespace emu {

using Lock = std::unique_lock<std::mutex>;

enum Kind { H2D = 0, D2H = 1, COMPUTE = 2, D2D = 3, MEMSET = 4, HOST = 5, MARK = 6, KINDS = 7 };
enum EngineId { ENGINE_H2D = 0, ENGINE_D2H = 1, ENGINE_COMPUTE = 2, ENGINES = 3, NO_ENGINE = -1 };

struct Op;

struct Context {
  CUcontext handle;
  int device;
  bool primary;
  int retained = 0;
  unsigned flags = 0;
  std::atomic<bool> dead{false};
  std::atomic<int> sticky{0};  // the first error of an asynchronous operation; every later call returns it
  std::shared_ptr<struct Stream> legacy;
};

// Bytes an operation reads or writes, as addresses of the caller (device or host).
struct Range {
  uint64_t lo, hi;
  bool write;
};

// What an operation does; a captured graph keeps these and enqueues them again at every launch.
struct Work {
  Kind kind = MARK;
  int engine = NO_ENGINE;
  int64_t nominal_ns = 0;  // duration asked for by the launch itself, beside the delays that are set
  size_t bytes = 0;
  bool pageable = false;
  bool kernel = false;  // ranges are checked when it runs, as a GPU does; a copy's are checked at the call
  std::string label;
  std::vector<Range> ranges;
  std::function<void()> begin, end;  // neither runs when the context is broken
};

// Position reached in each stream, for the race detector.
using Clock = std::map<uint32_t, uint64_t>;

struct Op {
  std::shared_ptr<Work> work;
  std::shared_ptr<Context> ctx;
  uint32_t stream = 0;
  uint64_t seq = 0;
  uint64_t graph = 0;
  Clock clock;
  std::vector<std::shared_ptr<Op>> after;
  int64_t enqueued = 0, start = 0, finish = 0;
  bool done = false;
};

// Work of a graph, the stream it was captured on, and the nodes of other streams that it comes behind.
struct Node {
  std::shared_ptr<Work> work;
  uint32_t lane;
  std::vector<size_t> behind;
};

// Nodes captured so far on each stream, as far as a stream or an event knows of them.
using Tips = std::map<uint32_t, size_t>;

struct Capture {
  int mode;
  std::thread::id thread;
  uint32_t origin;
  bool invalidated = false;
  std::vector<Node> nodes;
  std::vector<std::shared_ptr<struct Stream>> joined;  // streams that came in by waiting for a captured event
};

struct Stream : std::enable_shared_from_this<Stream> {
  CUstream handle;
  uint32_t id;
  unsigned flags = 0;
  std::shared_ptr<Context> ctx;
  std::deque<std::shared_ptr<Op>> queue;
  std::shared_ptr<Op> last;
  std::shared_ptr<Capture> capture;
  Tips tips;
  Clock clock;
  uint64_t seq = 0;
  int64_t free_at = 0;  // ideal end of the last operation
  bool closing = false, worker = false;
  bool hidden = false;  // a thread's own default stream, or one that a graph launches on: not counted
  std::condition_variable wake;
};

struct Event {
  CUevent handle;
  unsigned flags = 0;
  std::shared_ptr<Context> ctx;
  std::shared_ptr<Op> recorded;
  std::shared_ptr<Capture> captured;
  Tips tips;
};

struct Graph {
  uint64_t id;
  std::shared_ptr<Context> ctx;
  uint32_t origin;
  std::vector<Node> nodes;
  std::map<uint32_t, std::shared_ptr<Stream>> lanes;  // for what was captured on other streams than the first
  std::shared_ptr<Op> last;                           // of the launch before: launches of one graph do not overlap
};

struct Engine {
  int width = 1, active = 0;
  std::deque<Op*> waiting;
  std::vector<int64_t> free_at{0};
};

struct Allocation {
  uint64_t base;
  size_t size;
  std::shared_ptr<uint8_t[]> store;  // the bytes with a red zone on both sides
  uint8_t* host;
  std::shared_ptr<Context> ctx;
  bool managed;
};

struct Pinned {
  uint64_t base;
  size_t size;
  unsigned flags;
  bool registered;
  std::shared_ptr<Context> ctx;
  std::shared_ptr<uint8_t[]> store;  // null for registered memory
};

struct Api {
  std::string name;
  std::atomic<long> calls{0};
  std::atomic<bool> armed{false};
  long skip = 0, count = 0;  // fail `count` calls after `skip` good ones; guarded by mu
  int code = 0;
  bool sticky = false;
};

struct TraceRow {
  uint32_t stream;
  int32_t kind;
  uint64_t graph;
  int64_t enqueued, start, finish;
  uint64_t bytes;
  int32_t pageable;
  int32_t engine;
};

struct State {
  std::mutex mu;
  std::condition_variable progress;  // an operation is done, an engine is free
  bool enabled = false, initialised = false, tracing = false;
  int device_count = 1, driver_version = 13000;
  bool recycling = false;  // give the handle of a stream that was destroyed to the next one, as drivers do
  std::vector<void*> spent;
  size_t total_memory = size_t(8) << 30, used_memory = 0;
  int64_t latency_ns[KINDS] = {};
  double bytes_per_s[KINDS] = {};
  Engine engines[ENGINES];
  std::unordered_map<void*, std::shared_ptr<Context>> contexts;
  std::unordered_map<void*, std::shared_ptr<Stream>> streams;
  std::vector<std::shared_ptr<Stream>> closing;  // destroyed by the user, with work under way
  std::unordered_map<void*, std::shared_ptr<Event>> events;
  std::unordered_map<void*, std::shared_ptr<Graph>> graphs, execs;
  std::map<uint64_t, Allocation> allocations;
  std::map<uint64_t, Pinned> pinned;
  std::vector<std::shared_ptr<Op>> pending;  // operations with ranges that are not done
  std::vector<std::shared_ptr<Capture>> captures;
  std::vector<TraceRow> trace;
  std::vector<std::string> hazards;
  std::map<std::string, Api*> apis;
  std::map<int, std::shared_ptr<Context>> primaries;
  long unfinished = 0;  // operations enqueued and not done
};

// Never destroyed: detached workers may still use it while the process ends.
inline State& g() {
  static State* state = new State;
  return *state;
}

extern thread_local std::vector<std::shared_ptr<Context>> stack;
extern thread_local bool in_callback;
extern thread_local int capture_mode;  // of this thread, see cuThreadExchangeStreamCaptureMode

int64_t now_ns();
void* new_handle();
Api& api(const char* name);
Api& api_locked(const std::string& name);
enum Need { NOTHING, INIT, CONTEXT };
// Counts the call, applies injected failures and the checks that every entry point shares.
CUresult enter(Api& a, Need need);
bool injected(Api& a, int* code, bool* sticky);
void hazard(const std::string& text);
bool take_injected(Api& a, int* code);
std::shared_ptr<Context> current();

// engines.cpp
std::shared_ptr<Stream> make_stream(std::shared_ptr<Context> ctx, unsigned flags, CUstream handle);
CUresult find_stream(CUstream handle, std::shared_ptr<Stream>* out);
std::shared_ptr<Op> enqueue(Stream& s, std::shared_ptr<Work> w, std::vector<std::shared_ptr<Op>> after = {},
                            uint64_t graph = 0);
void wait_op(Lock& lk, const std::shared_ptr<Op>& op);
void wait_stream(Lock& lk, Stream& s);
void wait_context(Lock& lk, Context* c);
void close_stream(Stream& s);

// graphs.cpp
// Refuses calls that are not allowed while a stream is being captured, and invalidates that capture.
CUresult unsafe_in_capture();
// Refuses to wait for a context with a stream under capture, and invalidates that capture.
CUresult capturing_in(const Context& c);
// Ends the capture of a stream, if there is one.
void drop_capture(Stream& s);
// Enqueues the work, or adds it to the graph under capture. `block` waits for it (not while capturing).
CUresult submit(Lock& lk, Stream& s, std::shared_ptr<Work> w, bool block);

// memory.cpp
uint8_t* device_bytes(uint64_t address, size_t size, std::shared_ptr<uint8_t[]>* keep);
bool is_pinned(const void* p, size_t size, std::shared_ptr<uint8_t[]>* keep = nullptr);
void free_allocation(std::map<uint64_t, Allocation>::iterator it);
void free_pinned(std::map<uint64_t, Pinned>::iterator it);
void destroy_context(Lock& lk, std::shared_ptr<Context> c);

}  // namespace emu

#define EMU_ENTER(name, need)                         \
  static emu::Api& emu_api = emu::api(name);          \
  if (CUresult emu_r = emu::enter(emu_api, emu::need)) return emu_r;
