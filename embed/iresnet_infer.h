/* Classify images with an engine bundle from C. Link with -liresnet_infer; iresnet_infer.hpp is the C++ side.
 *
 * Every function may be called from any thread at any time, several on the same runner too. None throws, and none
 * needs anything of Python from its caller. A function returns IRESNET_OK or another status; iresnet_last_error()
 * then says what was expected, what was found and what to do.
 *
 * The library starts an interpreter in the process on the first call; environment variables choose it:
 *   IRESNET_PYTHON      path of the python executable (of a virtual environment) in place of the one that built this
 *   IRESNET_PYTHONPATH  folders to import from, in front of the others, separated by ':'
 */
#ifndef IRESNET_INFER_H
#define IRESNET_INFER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header. Compare with iresnet_abi_version(), which is that of the library. */
#define IRESNET_ABI_VERSION 1

typedef enum iresnet_status {
    IRESNET_OK = 0,
    IRESNET_INVALID_ARGUMENT = 1,   /* a pointer, size or number is wrong, or the runner is closed */
    IRESNET_BUNDLE_ERROR = 2,       /* the bundle is missing, damaged or of another version */
    IRESNET_TARGET_UNAVAILABLE = 3, /* nothing here runs it: a library, driver or device is missing */
    IRESNET_UNTRAINED = 4,          /* the weights are random; see iresnet_options.allow_untrained */
    IRESNET_UNSUPPORTED = 5,        /* the target cannot do this */
    IRESNET_DEVICE_ERROR = 6,       /* CUDA or TensorRT failed */
    IRESNET_INTERNAL_ERROR = 7,     /* the interpreter could not be started, or an error that nobody foresaw */
    IRESNET_WRONG_ANSWERS = 8,      /* no plan gives the bundle's known answers on this machine */
} iresnet_status;

/* An opened bundle. The pointer is a number in disguise: never dereference it. */
typedef struct iresnet_runner iresnet_runner;

typedef struct iresnet_options {
    size_t size;         /* sizeof(iresnet_options) */
    const char *target;  /* "tensorrt", "tensorrt_rtx", "openvino"; NULL: the fastest that runs here */
    int threads;         /* CPU threads of a CPU target; 0: its own choice */
    int allow_untrained; /* open a bundle with random weights too */
    int device;          /* GPU of a TensorRT target: its ordinal */
    int slots;           /* streams on that GPU, with two batches in flight on each; 0: three */
    int spin;            /* let threads that wait for that GPU spin: lower latency, busy cores */
} iresnet_options;

typedef struct iresnet_info {
    int32_t height, width, channels; /* of the uint8 input, channels are R, G, B */
    int32_t num_classes;             /* columns of the logits */
    int32_t top_k;                   /* columns of scores and classes */
    int32_t max_batch;               /* of one run on the device; iresnet_infer splits larger batches */
    int32_t in_flight;               /* threads that keep the device busy */
    int32_t trained;                 /* 0: random weights */
    int32_t device_pointers;         /* 1: iresnet_infer_device works on this target */
} iresnet_info;

/* Buffers of the caller for the results of a batch, with their sizes in bytes, which must be exact.
 * iresnet_infer skips a pointer that is NULL. Row-major, best class first. */
typedef struct iresnet_outputs {
    float *logits;        /* [batch, num_classes] */
    size_t logits_bytes;
    float *scores;        /* [batch, top_k], softmax probabilities */
    size_t scores_bytes;
    int32_t *classes;     /* [batch, top_k] */
    size_t classes_bytes;
} iresnet_outputs;

int iresnet_abi_version(void);

/* Of the package, such as "0.1.0". */
const char *iresnet_version(void);

/* Why the last call on this thread failed; "" after one that did not. Valid until the next call on this thread. */
const char *iresnet_last_error(void);

/* Open a bundle. *runner is set on success only. options may be NULL. */
iresnet_status iresnet_open(const char *bundle, const iresnet_options *options, iresnet_runner **runner);

iresnet_status iresnet_get_info(iresnet_runner *runner, iresnet_info *info);

/* Name of a class, UTF-8; valid until the runner is closed. */
iresnet_status iresnet_label(iresnet_runner *runner, int32_t index, const char **label);

/* Resize and crop a picture as the model was trained: rgb holds height rows of width pixels of 3 bytes, a row every
 * row_bytes bytes. image receives height * width * 3 bytes of iresnet_info, which is image_bytes. */
iresnet_status iresnet_preprocess(iresnet_runner *runner, const uint8_t *rgb, int32_t width, int32_t height,
                                  size_t row_bytes, uint8_t *image, size_t image_bytes);

/* Classify pre-processed images in host memory, uint8 [batch, height, width, 3] in images_bytes bytes, any batch from 1.
 * Returns when the outputs are written. */
iresnet_status iresnet_infer(iresnet_runner *runner, const uint8_t *images, size_t images_bytes, int32_t batch,
                             const iresnet_outputs *outputs);

/* The same in device memory, on a stream (cudaStream_t, CUstream) of the device's primary context, NULL for the default
 * stream. Copies nothing and does not wait: the outputs are ready for what comes behind on that stream, and the memory
 * must stay until then. Pointers are multiples of 256 bytes; all three outputs are needed; batch is at most max_batch.
 * IRESNET_UNSUPPORTED on targets without device memory. */
iresnet_status iresnet_infer_device(iresnet_runner *runner, const void *images, size_t images_bytes, int32_t batch,
                                    const iresnet_outputs *outputs, void *stream);

/* Wait for the calls under way on this runner and release it; later calls on it fail. NULL does nothing. */
iresnet_status iresnet_close(iresnet_runner *runner);

#ifdef __cplusplus
}
#endif
#endif
