// C++17 on top of iresnet_infer.h: a runner that closes itself, errors as exceptions, results as vectors.
//
//     iresnet::Runner runner("engines/iresnet101-fp16");
//     std::vector<uint8_t> batch(4 * runner.image_bytes());
//     runner.preprocess(pixels, width, height, 3 * width, batch.data());
//     iresnet::Outputs outputs = runner.infer(batch.data(), 4);
//     std::cout << runner.label(outputs.classes[0]) << " " << outputs.scores[0] << "\n";
//
// One runner serves any number of threads. Compiled without exceptions (-fno-exceptions), an error prints its message
// and ends the program; a program that wants to go on calls the functions of iresnet_infer.h.
#ifndef IRESNET_INFER_HPP
#define IRESNET_INFER_HPP

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "iresnet_infer.h"

namespace iresnet {

// What a function of the library reports in place of IRESNET_OK.
class Error : public std::runtime_error {
public:
    Error(iresnet_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    iresnet_status status() const noexcept { return status_; }

private:
    iresnet_status status_;
};

[[noreturn]] inline void fail(iresnet_status status, const std::string &message)
{
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
    throw Error(status, message);
#else
    std::fprintf(stderr, "iresnet: status %d: %s\n", static_cast<int>(status), message.c_str());
    std::abort();
#endif
}

inline void check(iresnet_status status)
{
    if (status != IRESNET_OK)
        fail(status, iresnet_last_error());
}

struct Options {
    std::string target;           // empty: the fastest that runs here
    int32_t threads = 0;          // of a CPU target; 0: its own choice
    bool allow_untrained = false; // random weights too
    int32_t device = 0;           // GPU of a TensorRT target: its ordinal
    int32_t slots = 0;            // streams on that GPU; 0: three
    bool spin = false;            // threads that wait for that GPU spin
    std::string self_test;        // known answers: "always", "new", "never"; empty: as the environment says, else "new"
};

// Results of a batch, row-major, best class first.
struct Outputs {
    std::vector<float> logits;    // [batch, num_classes]
    std::vector<float> scores;    // [batch, top_k]
    std::vector<int32_t> classes; // [batch, top_k]
};

class Runner {
public:
    explicit Runner(const std::string &bundle, const Options &options = {})
    {
        if (iresnet_abi_version() != IRESNET_ABI_VERSION)
            fail(IRESNET_INTERNAL_ERROR, "libiresnet_infer and iresnet_infer.h are of different versions");
        iresnet_options plain{};
        plain.size = sizeof plain;
        plain.target = options.target.empty() ? nullptr : options.target.c_str();
        plain.threads = options.threads;
        plain.allow_untrained = options.allow_untrained;
        plain.device = options.device;
        plain.slots = options.slots;
        plain.spin = options.spin;
        plain.self_test = options.self_test.empty() ? nullptr : options.self_test.c_str();
        check(iresnet_open(bundle.c_str(), &plain, &runner_));
        sizes_ = info();
    }

    ~Runner() { iresnet_close(runner_); }

    Runner(Runner &&other) noexcept : runner_(std::exchange(other.runner_, nullptr)), sizes_(other.sizes_) {}
    Runner &operator=(Runner &&other) noexcept
    {
        std::swap(runner_, other.runner_);
        std::swap(sizes_, other.sizes_);
        return *this;
    }
    Runner(const Runner &) = delete;
    Runner &operator=(const Runner &) = delete;

    // Sizes, target, and what the known answers have said by now; its texts are valid as long as the runner.
    iresnet_info info() const
    {
        iresnet_info found{};
        found.size = sizeof found;
        check(iresnet_get_info(runner_, &found));
        return found;
    }

    // Bytes of one pre-processed image.
    std::size_t image_bytes() const noexcept
    {
        return size(sizes_.height) * size(sizes_.width) * size(sizes_.channels);
    }

    // Name of a class, UTF-8; valid as long as the runner.
    const char *label(int32_t index) const
    {
        const char *text = nullptr;
        check(iresnet_label(runner_, index, &text));
        return text;
    }

    // Resize and crop a picture of any size to image_bytes() bytes at image.
    void preprocess(const uint8_t *rgb, int32_t width, int32_t height, std::size_t row_bytes, uint8_t *image) const
    {
        check(iresnet_preprocess(runner_, rgb, width, height, row_bytes, image, image_bytes()));
    }

    // Classify batch images in host memory.
    Outputs infer(const uint8_t *images, int32_t batch) const
    {
        const std::size_t rows = size(batch), best = rows * size(sizes_.top_k);
        Outputs outputs{std::vector<float>(rows * size(sizes_.num_classes)), std::vector<float>(best),
                        std::vector<int32_t>(best)};
        infer(images, batch, outputs.logits.data(), outputs.scores.data(), outputs.classes.data());
        return outputs;
    }

    // The same into buffers of the caller; nullptr for what is not wanted.
    void infer(const uint8_t *images, int32_t batch, float *logits, float *scores, int32_t *classes) const
    {
        const iresnet_outputs outputs = sized(batch, logits, scores, classes);
        check(iresnet_infer(runner_, images, image_bytes() * size(batch), batch, &outputs));
    }

    // Device memory and a stream (cudaStream_t); returns before the outputs are written. See iresnet_infer_device.
    void infer_device(const void *images, int32_t batch, float *logits, float *scores, int32_t *classes,
                      void *stream) const
    {
        const iresnet_outputs outputs = sized(batch, logits, scores, classes);
        check(iresnet_infer_device(runner_, images, image_bytes() * size(batch), batch, &outputs, stream));
    }

private:
    static constexpr std::size_t size(int32_t count) noexcept { return count > 0 ? static_cast<std::size_t>(count) : 0; }

    iresnet_outputs sized(int32_t batch, float *logits, float *scores, int32_t *classes) const noexcept
    {
        const std::size_t all = size(batch) * size(sizes_.num_classes) * sizeof(float);
        const std::size_t best = size(batch) * size(sizes_.top_k) * sizeof(float);
        return {sizeof(iresnet_outputs), logits, all, scores, best, classes, best};
    }

    iresnet_runner *runner_ = nullptr;
    iresnet_info sizes_{};
};

} // namespace iresnet
#endif
