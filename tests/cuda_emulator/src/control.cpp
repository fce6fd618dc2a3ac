// What tests use: delays, failures, out of memory, the trace, hazards, kernels. No part of CUDA.
#include <algorithm>
#include <array>
#include <cstring>

#include "emulator.h"

using namespace emu;

// Without this the library behaves as a driver without a device.
EMU_API void emu_enable(int on) {
  Lock lk(g().mu);
  g().enabled = on != 0;
  if (!on) g().initialised = false;
}

EMU_API void emu_set_delay(int kind, int64_t latency, double bytes_per_second) {
  Lock lk(g().mu);
  g().latency_ns[kind] = latency;
  g().bytes_per_s[kind] = bytes_per_second;
}

EMU_API void emu_set_engine_width(int engine, int width) {
  Lock lk(g().mu);
  g().engines[engine].width = width;
  g().progress.notify_all();
}

EMU_API void emu_set_memory(size_t bytes) {
  Lock lk(g().mu);
  g().total_memory = bytes;
}

EMU_API void emu_set_driver_version(int version) {
  Lock lk(g().mu);
  g().driver_version = version;
}

EMU_API void emu_recycle_streams(int on) {
  Lock lk(g().mu);
  g().recycling = on != 0;
  g().spent.clear();
}

EMU_API void emu_set_device_count(int n) {
  Lock lk(g().mu);
  g().device_count = n;
}

// The calls of `name` after the next `skip` ones fail, `count` times (negative: always), with `code`. A sticky
// failure stays with the context. "op:h2d", "op:d2h", "op:compute" fail when they run, which is always sticky.
EMU_API void emu_fail(const char* name, long skip, long count, int code, int sticky) {
  Lock lk(g().mu);
  Api& a = api_locked(name);
  a.skip = skip;
  a.count = count;
  a.code = code;
  a.sticky = sticky != 0;
  a.armed = count != 0;
}

EMU_API void emu_fail_clear() {
  Lock lk(g().mu);
  for (auto& [name, a] : g().apis) a->armed = false;
}

EMU_API long emu_calls(const char* name) {
  Lock lk(g().mu);
  return api_locked(name).calls;
}

// 0 contexts, 1 streams, 2 events, 3 device allocations, 4 device bytes, 5 pinned allocations, 6 pinned bytes,
// 7 graphs, 8 executable graphs, 9 operations under way, 10 depth of this thread's stack of contexts,
// 11 how often the primary context of device 0 is retained
EMU_API long long emu_live(int what) {
  Lock lk(g().mu);
  State& S = g();
  long long bytes = 0;
  switch (what) {
    case 0: return (long long)S.contexts.size();
    case 1:
      return (long long)std::count_if(S.streams.begin(), S.streams.end(), [](auto& one) { return !one.second->hidden; });
    case 2: return (long long)S.events.size();
    case 3: return (long long)S.allocations.size();
    case 4: return (long long)S.used_memory;
    case 5: return (long long)S.pinned.size();
    case 6:
      for (auto& [a, p] : S.pinned) bytes += (long long)p.size;
      return bytes;
    case 7: return (long long)S.graphs.size();
    case 8: return (long long)S.execs.size();
    case 9: return S.unfinished;
    case 10: return (long long)stack.size();
    case 11: return S.primaries.count(0) && !S.primaries[0]->dead ? S.primaries[0]->retained : 0;
  }
  return -1;
}

EMU_API void emu_trace(int on) {
  Lock lk(g().mu);
  if (on) g().trace.clear();
  g().tracing = on != 0;
}

// Copies at most `max` rows; returns how many there are.
EMU_API long emu_trace_read(TraceRow* rows, long max) {
  Lock lk(g().mu);
  const long n = long(g().trace.size());
  std::copy_n(g().trace.begin(), std::min(n, max), rows);
  return n;
}

EMU_API long emu_hazard(long i, char* text, size_t size) {
  Lock lk(g().mu);
  const auto& h = g().hazards;
  if (i >= 0 && i < long(h.size()) && size > 0) {
    std::strncpy(text, h[size_t(i)].c_str(), size - 1);
    text[size - 1] = 0;
  }
  return long(h.size());
}

EMU_API void emu_report_hazard(const char* text) {
  Lock lk(g().mu);
  hazard(text);
}

EMU_API void emu_hazards_clear() {
  Lock lk(g().mu);
  g().hazards.clear();
}

EMU_API void emu_break_context(int code) {
  Lock lk(g().mu);
  for (auto& [h, c] : g().contexts) c->sticky = code;
}

// Waits until nothing is under way.
EMU_API void emu_drain() {
  Lock lk(g().mu);
  g().progress.wait(lk, [] { return g().unfinished == 0; });
}

// Host bytes behind a device address; null when the range is not inside one allocation.
EMU_API void* emu_host_bytes(uint64_t address, size_t size) {
  Lock lk(g().mu);
  return device_bytes(address, size, nullptr);
}

struct Access {
  uint64_t address, size;
  int32_t write, unused;
};

static std::shared_ptr<Work> kernel(const char* label, int64_t nominal, const Access* access, int count) {
  auto w = std::make_shared<Work>();
  w->kind = COMPUTE;
  w->engine = ENGINE_COMPUTE;
  w->kernel = true;
  w->label = label;
  w->nominal_ns = nominal;
  for (int i = 0; i < count; ++i)
    w->ranges.push_back({access[i].address, access[i].address + access[i].size, access[i].write != 0});
  return w;
}

static CUresult launch(CUstream stream, std::shared_ptr<Work> w) {
  EMU_ENTER("emu_launch", CONTEXT);
  Lock lk(g().mu);
  std::shared_ptr<Stream> s;
  if (CUresult r = find_stream(stream, &s)) return r;
  return submit(lk, *s, std::move(w), false);
}

// A kernel written by the test: `fn(user, 0)` when it starts, `fn(user, 1)` when it ends; neither in a broken context.
EMU_API CUresult emu_launch(CUstream stream, const char* label, int64_t nominal, const Access* access, int count,
                            void (*fn)(void*, int), void* user) {
  auto w = kernel(label, nominal, access, count);
  w->begin = [=] { fn(user, 0); };
  w->end = [=] { fn(user, 1); };
  return launch(stream, w);
}

struct RowKernel {
  uint64_t images, logits, scores, classes, scratch;
  uint64_t rows, row_bytes, num_classes, k, scratch_bytes;
};

// Stands for a network: every row's outputs depend on all bytes of that row and on nothing else, exactly.
static void hash_rows(const RowKernel& p, const uint8_t* images, float* logits, float* scores, int32_t* classes) {
  std::vector<int32_t> order(p.num_classes);
  for (uint64_t r = 0; r < p.rows; ++r) {
    const uint8_t* row = images + r * p.row_bytes;
    uint64_t h = 0, multiplier = 0x9E3779B97F4A7C15u;
    for (uint64_t i = 0; i + 8 <= p.row_bytes; i += 8, multiplier += 0x9E3779B97F4A7C16u) {
      uint64_t word;
      std::memcpy(&word, row + i, 8);
      h += word * multiplier;
    }
    float* out = logits + r * p.num_classes;
    for (uint64_t c = 0; c < p.num_classes; ++c) {
      uint64_t x = h + (c + 1) * 0x9E3779B97F4A7C15u;
      x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
      x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
      x ^= x >> 31;
      out[c] = float(x >> 40) / 1048576.0f - 8.0f;
      order[c] = int32_t(c);
    }
    std::partial_sort(order.begin(), order.begin() + long(p.k), order.end(),
                      [&](int32_t a, int32_t b) { return out[a] != out[b] ? out[a] > out[b] : a < b; });
    for (uint64_t j = 0; j < p.k; ++j) {
      classes[r * p.k + j] = order[j];
      scores[r * p.k + j] = (out[order[j]] + 8.0f) / 16.0f;
    }
  }
}

EMU_API CUresult emu_launch_row_kernel(CUstream stream, int64_t nominal, const RowKernel* params) {
  const RowKernel p = *params;
  const std::array<uint64_t, 5> sizes = {p.rows * p.row_bytes, p.rows * p.num_classes * 4, p.rows * p.k * 4, p.rows * p.k * 4,
                                         p.scratch_bytes};
  const std::array<Access, 5> access = {{{p.images, sizes[0], 0, 0},
                                         {p.logits, sizes[1], 1, 0},
                                         {p.scores, sizes[2], 1, 0},
                                         {p.classes, sizes[3], 1, 0},
                                         {p.scratch, sizes[4], 1, 0}}};
  auto w = kernel("network", nominal, access.data(), p.scratch_bytes ? 5 : 4);
  // Found when the kernel starts and kept to its end, whatever is freed meanwhile.
  struct Running {
    uint8_t* bytes[5] = {};
    std::shared_ptr<uint8_t[]> keep[5];
    uint64_t mark = 0;
    bool usable() const { return bytes[0] && bytes[1] && bytes[2] && bytes[3]; }  // not freed with a broken context
  };
  auto run = std::make_shared<Running>();
  w->begin = [=] {
    {
      static uint64_t next_mark = 1;
      Lock lk(g().mu);
      for (int i = 0; i < 5; ++i) run->bytes[i] = sizes[i] ? device_bytes(access[i].address, sizes[i], &run->keep[i]) : nullptr;
      run->mark = next_mark++;
    }
    if (!run->usable()) return;
    for (int i = 1; i < 4; ++i) std::memset(run->bytes[i], 0xCB, sizes[i]);
    // A mark left in the scratch memory must still be there at the end: nobody else used it meanwhile.
    if (run->bytes[4] && p.scratch_bytes >= 8) std::memcpy(run->bytes[4], &run->mark, 8);
  };
  w->end = [=] {
    if (!run->usable()) return;
    auto** b = run->bytes;
    hash_rows(p, b[0], reinterpret_cast<float*>(b[1]), reinterpret_cast<float*>(b[2]), reinterpret_cast<int32_t*>(b[3]));
    if (b[4] && p.scratch_bytes >= 8 && std::memcmp(b[4], &run->mark, 8) != 0) {
      emu_report_hazard("scratch memory used by two executions at once");
      std::memset(b[1], 0xCB, sizes[1]);
    }
    for (auto& k : run->keep) k.reset();
  };
  return launch(stream, w);
}
