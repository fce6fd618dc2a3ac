// The checks every entry point shares, injected failures, hazards.
#include <time.h>

#include <algorithm>

#include "emulator.h"

namespace emu {

thread_local std::vector<std::shared_ptr<Context>> stack;
thread_local bool in_callback = false;
thread_local int capture_mode = CAPTURE_GLOBAL;

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// Handles are never used twice, so a stale one is always found out.
void* new_handle() {
  static std::atomic<uint64_t> next{0x100000};
  return reinterpret_cast<void*>(next.fetch_add(16));
}

Api& api_locked(const std::string& name) {
  Api*& a = g().apis[name];
  if (!a) {
    a = new Api;
    a->name = name;
  }
  return *a;
}

Api& api(const char* name) {
  Lock lk(g().mu);
  return api_locked(name);
}

bool injected(Api& a, int* code, bool* sticky) {
  if (!a.armed.load(std::memory_order_relaxed)) return false;
  if (a.skip > 0) {
    --a.skip;
    return false;
  }
  if (a.count == 0) return false;
  if (--a.count == 0) a.armed = false;
  *code = a.code;
  *sticky = a.sticky;
  return true;
}

// For calls that do their work and then tell a failure, of earlier work for example.
bool take_injected(Api& a, int* code) {
  bool sticky = false;
  if (!a.armed.load(std::memory_order_relaxed) || !injected(a, code, &sticky)) return false;
  if (sticky && !stack.empty() && stack.back()) stack.back()->sticky = *code;
  return true;
}

CUresult enter(Api& a, Need need) {
  a.calls.fetch_add(1, std::memory_order_relaxed);
  // A host function must not call the driver.
  if (in_callback) {
    Lock lk(g().mu);
    hazard(a.name + " called from a host function or kernel");
    return CUDA_ERROR_NOT_PERMITTED;
  }
  if (a.armed.load(std::memory_order_relaxed)) {
    Lock lk(g().mu);
    int code = 0;
    bool sticky = false;
    if (injected(a, &code, &sticky)) {
      if (sticky && !stack.empty() && stack.back()) stack.back()->sticky = code;
      return code;
    }
  }
  if (need == NOTHING) return CUDA_SUCCESS;
  if (!g().initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (need == INIT) return CUDA_SUCCESS;
  if (stack.empty() || !stack.back()) return CUDA_ERROR_INVALID_CONTEXT;
  if (stack.back()->dead) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  return stack.back()->sticky;
}

std::shared_ptr<Context> current() { return stack.empty() ? nullptr : stack.back(); }

void hazard(const std::string& text) {
  auto& h = g().hazards;
  if (h.size() < 1000 && std::find(h.begin(), h.end(), text) == h.end()) h.push_back(text);
}

}  // namespace emu
