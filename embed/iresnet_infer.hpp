// C++17 on top of iresnet_infer.h: a runner that closes itself, errors as exceptions, results as vectors.
//
//     iresnet::Runner runner("engines/iresnet101-fp16");
//     std::vector<uint8_t> batch(4 * runner.image_bytes());
//     runner.preprocess(pixels, width, height, 3 * width, batch.data());
//     iresnet::Outputs outputs = runner.infer(batch.data(), 4);
//     std::cout << runner.label(outputs.classes[0]) << " " << outputs.scores[0] << "\n";
//
// One runner serves any number of threads.
#ifndef IRESNET_INFER_HPP
#define IRESNET_INFER_HPP

#include <cstddef>
#include <cstdint>
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

inline void check(iresnet_status status)
{
    if (status != IRESNET_OK)
        throw Error(status, iresnet_last_error());
}

struct Options {
    std::string target;           // empty: the fastest that runs here
    int threads = 0;              // of a CPU target; 0: its own choice
    bool allow_untrained = false; // random weights too
    int device = 0;               // GPU of a TensorRT target: its ordinal
    int slots = 0;                // streams on that GPU; 0: three
    bool spin = false;            // threads that wait for that GPU spin
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
            throw Error(IRESNET_INTERNAL_ERROR, "libiresnet_infer and iresnet_infer.h are of different versions");
        const iresnet_options plain{sizeof(iresnet_options), options.target.empty() ? nullptr : options.target.c_str(),
                                    options.threads, options.allow_untrained, options.device, options.slots,
                                    options.spin};
        check(iresnet_open(bundle.c_str(), &plain, &runner_));
        if (const iresnet_status status = iresnet_get_info(runner_, &info_); status != IRESNET_OK) {
            const Error error(status, iresnet_last_error());
            iresnet_close(runner_);
            throw error;
        }
    }

    ~Runner() { iresnet_close(runner_); }

    Runner(Runner &&other) noexcept : runner_(std::exchange(other.runner_, nullptr)), info_(other.info_) {}
    Runner &operator=(Runner &&other) noexcept
    {
        std::swap(runner_, other.runner_);
        std::swap(info_, other.info_);
        return *this;
    }
    Runner(const Runner &) = delete;
    Runner &operator=(const Runner &) = delete;

    const iresnet_info &info() const noexcept { return info_; }

    // Bytes of one pre-processed image.
    std::size_t image_bytes() const noexcept
    {
        return static_cast<std::size_t>(info_.height) * info_.width * info_.channels;
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
        const std::size_t rows = batch > 0 ? batch : 0;
        Outputs outputs{std::vector<float>(rows * info_.num_classes), std::vector<float>(rows * info_.top_k),
                        std::vector<int32_t>(rows * info_.top_k)};
        infer(images, batch, outputs.logits.data(), outputs.scores.data(), outputs.classes.data());
        return outputs;
    }

    // The same into buffers of the caller; nullptr for what is not wanted.
    void infer(const uint8_t *images, int32_t batch, float *logits, float *scores, int32_t *classes) const
    {
        const iresnet_outputs outputs = sized(batch, logits, scores, classes);
        check(iresnet_infer(runner_, images, image_bytes() * (batch > 0 ? batch : 0), batch, &outputs));
    }

    // Device memory and a stream (cudaStream_t); returns before the outputs are written. See iresnet_infer_device.
    void infer_device(const void *images, int32_t batch, float *logits, float *scores, int32_t *classes,
                      void *stream) const
    {
        const iresnet_outputs outputs = sized(batch, logits, scores, classes);
        check(iresnet_infer_device(runner_, images, image_bytes() * (batch > 0 ? batch : 0), batch, &outputs, stream));
    }

private:
    iresnet_outputs sized(int32_t batch, float *logits, float *scores, int32_t *classes) const noexcept
    {
        const std::size_t rows = batch > 0 ? batch : 0;
        const std::size_t all = rows * info_.num_classes * sizeof(float), best = rows * info_.top_k * 4;
        return {logits, all, scores, best, classes, best};
    }

    iresnet_runner *runner_ = nullptr;
    iresnet_info info_{};
};

} // namespace iresnet
#endif
