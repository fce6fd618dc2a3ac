// Streams as in-order queues with one worker thread each, and the engines they share.
//
// Time is kept twice. The worker really sleeps, but each operation is also given an ideal start (it is ready
// and its engine is free) and an ideal end, and the next operation is timed from those. A worker that wakes
// late therefore does not make the whole timeline late.
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>

#include "emulator.h"

namespace emu {

static const char* kind_name[KINDS] = {"H2D", "D2H", "compute", "D2D", "memset", "host", "mark"};
static const char* kind_api[KINDS] = {"op:h2d", "op:d2h", "op:compute", "op:d2d", "op:memset", "op:host", "op:mark"};

static void sleep_until(int64_t t) {
  timespec ts{time_t(t / 1000000000), long(t % 1000000000)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, nullptr) != 0) {
  }
}

static int64_t timed(const std::function<void()>& f, Kind kind) {
  if (!f) return 0;
  const int64_t t0 = now_ns();
  in_callback = kind == HOST;
  f();
  in_callback = false;
  return now_ns() - t0;
}

// A kernel that touches memory that is not allocated stops the context, as a GPU does.
static bool addresses_valid(const Work& w) {
  for (const Range& r : w.ranges)
    if (!device_bytes(r.lo, r.hi - r.lo, nullptr) && !is_pinned(reinterpret_cast<void*>(r.lo), r.hi - r.lo)) return false;
  return true;
}

static void run(Lock& lk, Stream& s, const std::shared_ptr<Op>& op) {
  State& S = g();
  Work& w = *op->work;
  for (auto& d : op->after) S.progress.wait(lk, [&] { return d->done; });
  int64_t ready = std::max(op->enqueued, s.free_at);
  for (auto& d : op->after) ready = std::max(ready, d->finish);
  op->after.clear();
  if (w.kind == MARK) {
    op->start = op->finish = ready;
    return;
  }
  Engine* e = w.engine == NO_ENGINE ? nullptr : &S.engines[w.engine];
  size_t lane = 0;
  if (e) {
    e->waiting.push_back(op.get());
    S.progress.wait(lk, [&] { return e->waiting.front() == op.get() && e->active < e->width; });
    e->waiting.pop_front();
    ++e->active;
    e->free_at.resize(size_t(e->width), 0);
    lane = size_t(std::min_element(e->free_at.begin(), e->free_at.end()) - e->free_at.begin());
    ready = std::max(ready, e->free_at[lane]);
    e->free_at[lane] = INT64_MAX;  // taken
    S.progress.notify_all();  // the next in line may have a lane of its own
  }
  op->start = op->finish = ready;
  int code = 0;
  bool sticky = false;
  const bool fails = injected(api_locked(kind_api[w.kind]), &code, &sticky);
  if (w.kernel && !op->ctx->sticky && !addresses_valid(w)) {
    op->ctx->sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
    hazard("kernel " + w.label + " used memory that is not allocated");
  }
  if (op->ctx->sticky || op->ctx->dead) {
    // Skipped. Its callback is not told: one in Python would need the GIL, which a caller that destroys the broken
    // context holds.
  } else {
    int64_t duration = w.nominal_ns + S.latency_ns[w.kind];
    if (S.bytes_per_s[w.kind] > 0) duration += int64_t(double(w.bytes) / S.bytes_per_s[w.kind] * 1e9);
    lk.unlock();
    int64_t real = timed(w.begin, w.kind);
    if (duration > 0 && op->start + duration > now_ns()) sleep_until(op->start + duration);
    if (!fails && !op->ctx->sticky && !op->ctx->dead) real += timed(w.end, w.kind);
    op->finish = op->start + std::max(duration, real);
    lk.lock();
    if (fails && !op->ctx->sticky) op->ctx->sticky = code;
  }
  if (e) {
    e->free_at[lane] = op->finish;
    --e->active;
  }
  if (S.tracing)
    S.trace.push_back({op->stream, w.kind, op->graph, op->enqueued, op->start, op->finish, w.bytes, w.pageable, w.engine});
}

static void worker(std::shared_ptr<Stream> s) {
  State& S = g();
  prctl(PR_SET_TIMERSLACK, 1);  // the kernel lets sleeps end 50 us late otherwise
  Lock lk(S.mu);
  for (;;) {
    s->wake.wait(lk, [&] { return !s->queue.empty() || s->closing; });
    if (s->queue.empty()) {
      auto& closing = S.closing;
      closing.erase(std::remove(closing.begin(), closing.end(), s), closing.end());
      return;
    }
    std::shared_ptr<Op> op = s->queue.front();
    run(lk, *s, op);
    s->free_at = op->finish;
    s->queue.pop_front();
    op->done = true;
    --S.unfinished;
    if (!op->work->ranges.empty()) S.pending.erase(std::find(S.pending.begin(), S.pending.end(), op));
    if (s->last == op) s->last.reset();
    S.progress.notify_all();
  }
}

std::shared_ptr<Stream> make_stream(std::shared_ptr<Context> ctx, unsigned flags, CUstream handle) {
  static uint32_t next_id = 0;
  auto s = std::make_shared<Stream>();
  s->handle = handle;
  s->id = next_id++;
  s->flags = flags;
  s->ctx = std::move(ctx);
  return s;
}

CUresult find_stream(CUstream handle, std::shared_ptr<Stream>* out) {
  auto ctx = current();
  if (reinterpret_cast<uintptr_t>(handle) <= 1) {
    *out = ctx->legacy;
    return CUDA_SUCCESS;
  }
  if (reinterpret_cast<uintptr_t>(handle) == 2) {  // another stream in each thread
    static thread_local std::map<Context*, std::weak_ptr<Stream>> own;
    *out = own[ctx.get()].lock();
    if (!*out || (*out)->closing) {
      CUstream made = new_handle();
      *out = make_stream(ctx, 0, made);
      (*out)->hidden = true;
      g().streams[made] = *out;
      own[ctx.get()] = *out;
    }
    return CUDA_SUCCESS;
  }
  auto it = g().streams.find(handle);
  if (it == g().streams.end() || it->second->ctx != ctx) return CUDA_ERROR_INVALID_HANDLE;
  *out = it->second;
  return CUDA_SUCCESS;
}

static void merge(Clock& into, const Clock& from) {
  for (auto& [k, v] : from) into[k] = std::max(into[k], v);
}

// Two operations on the same bytes, one of them writing, that no stream order or event puts in order: whether
// they really collide depends on timing, that they may does not. What the host has seen to be done is in order.
static void find_races(const Op& x) {
  for (const Range& a : x.work->ranges)
    for (auto& y : g().pending) {
      if (y.get() == &x) continue;
      auto seen = x.clock.find(y->stream);
      if (seen != x.clock.end() && seen->second >= y->seq) continue;
      for (const Range& b : y->work->ranges)
        if (a.lo < b.hi && b.lo < a.hi && (a.write || b.write))
          hazard(std::string("race: ") + kind_name[x.work->kind] + " " + x.work->label + (a.write ? " writes" : " reads") +
                 " what " + kind_name[y->work->kind] + " " + y->work->label + (b.write ? " writes" : " reads"));
    }
}

std::shared_ptr<Op> enqueue(Stream& s, std::shared_ptr<Work> w, std::vector<std::shared_ptr<Op>> after, uint64_t graph) {
  State& S = g();
  auto op = std::make_shared<Op>();
  op->work = std::move(w);
  op->ctx = s.ctx;
  op->stream = s.id;
  op->graph = graph;
  op->enqueued = now_ns();
  op->seq = ++s.seq;
  // The default stream and the blocking streams of a context wait for each other.
  if (&s == s.ctx->legacy.get()) {
    for (auto& [h, other] : S.streams)
      if (other->ctx == s.ctx && !(other->flags & CU_STREAM_NON_BLOCKING) && other->last) after.push_back(other->last);
  } else if (!(s.flags & CU_STREAM_NON_BLOCKING) && s.ctx->legacy->last) {
    after.push_back(s.ctx->legacy->last);
  }
  for (auto& d : after) merge(s.clock, d->clock);
  s.clock[s.id] = s.seq;
  op->clock = s.clock;
  op->after = std::move(after);
  if (!op->work->ranges.empty()) {
    find_races(*op);
    S.pending.push_back(op);
  }
  s.queue.push_back(op);
  s.last = op;
  ++S.unfinished;
  if (!s.worker) {
    s.worker = true;
    std::thread(worker, s.shared_from_this()).detach();
  }
  s.wake.notify_one();
  return op;
}

void wait_op(Lock& lk, const std::shared_ptr<Op>& op) {
  if (op) g().progress.wait(lk, [&] { return op->done; });
}

void wait_stream(Lock& lk, Stream& s) {
  std::shared_ptr<Op> last = s.last;
  wait_op(lk, last);
}

void wait_context(Lock& lk, Context* c) {
  std::vector<std::shared_ptr<Op>> lasts;
  for (auto& [h, s] : g().streams)
    if (s->ctx.get() == c && s->last) lasts.push_back(s->last);
  for (auto& s : g().closing)
    if (s->ctx.get() == c && s->last) lasts.push_back(s->last);
  if (c->legacy && c->legacy->last) lasts.push_back(c->legacy->last);
  for (auto& op : lasts) wait_op(lk, op);
}

void close_stream(Stream& s) {
  drop_capture(s);
  s.closing = true;
  if (s.worker) g().closing.push_back(s.shared_from_this());
  s.wake.notify_one();
}

}  // namespace emu
