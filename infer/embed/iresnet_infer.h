/* Classify images with an engine bundle from C. Link with -liresnet_infer; iresnet_infer.hpp is the C++ side.
 *
 * Every function may be called from any thread at any time, several on the same runner too. None throws, and none
 * needs anything of Python from its caller. A function returns IRESNET_OK or another status; iresnet_last_error()
 * then says what was expected, what was found and what to do.
 *
 * The library starts an interpreter in the process when a bundle is first opened, isolated from what the process has
 * for another one: PYTHONHOME, PYTHONPATH and the like are not read, locale and environment stay as they are. Where the
 * process is a Python program already, its interpreter is used. Environment variables of the library's own:
 *   IRESNET_PYTHON      path of the python executable (of a virtual environment) in place of the installed choice
 *   IRESNET_PYTHONPATH  folders with packages, in front of those of that environment, separated by ':'
 * Both are refused in a Python program that they do not describe.
 */
#ifndef IRESNET_INFER_H
#define IRESNET_INFER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header, and the number behind ".so" in the library's name. Compare with iresnet_abi_version(), which is that
 * of the library. It changes when something is taken away; what is added leaves it. */
#define IRESNET_ABI_VERSION 2

typedef enum iresnet_status {
    IRESNET_OK = 0,
    IRESNET_INVALID_ARGUMENT = 1,   /* a pointer, path, size or number is wrong, or the runner is closed */
    IRESNET_BUNDLE_ERROR = 2,       /* the bundle is missing, damaged or of another version */
    IRESNET_TARGET_UNAVAILABLE = 3, /* nothing here runs it: a library, driver or device is missing */
    IRESNET_UNTRAINED = 4,          /* the weights are random; see iresnet_options.allow_untrained */
    IRESNET_UNSUPPORTED = 5,        /* the target cannot do this */
    IRESNET_DEVICE_ERROR = 6,       /* CUDA or TensorRT failed */
    IRESNET_INTERNAL_ERROR = 7,     /* an error that nobody foresaw */
    IRESNET_WRONG_ANSWERS = 8,      /* no plan gives the bundle's known answers on this machine */
    IRESNET_NO_INTERPRETER = 9,     /* Python or the package could not be started: the message says why */
    IRESNET_SHUT_DOWN = 10          /* the interpreter has ended (Py_Finalize, the end of a Python program), or this
                                       process is a fork of the one that started it */
} iresnet_status;

/* An opened bundle. The pointer is a number in disguise: never dereference it. */
typedef struct iresnet_runner iresnet_runner;

/* Every struct begins with its size as the caller knows it: sizeof. A smaller one, of an older header, is taken, and
 * what it lacks is zero; so is a larger one, of a newer header, as long as what this library does not know is zero. */

typedef struct iresnet_options {
    size_t size;           /* sizeof(iresnet_options) */
    const char *target;    /* "tensorrt", "tensorrt_rtx", "openvino", "onnxruntime"; NULL: the fastest that runs here */
    int32_t threads;       /* CPU threads of a CPU target, up to 4096; 0: its own choice */
    int32_t allow_untrained; /* 1: open a bundle with random weights too */
    int32_t device;        /* GPU of a TensorRT target: its ordinal, up to 255 */
    int32_t slots;         /* streams on that GPU, with two batches in flight on each, up to 64; 0: three */
    int32_t spin;          /* 1: let threads that wait for that GPU spin: lower latency, busy cores */
    int32_t reserved;      /* 0 */
    const char *self_test; /* known answers: "always", "new" (not what has passed on this machine), "never";
                              NULL: what the environment's IRESNET_SELF_TEST says, else "new" */
} iresnet_options;

/* What iresnet_info.known_answers says of the batch sizes checked so far, of the worst one. A plan that fails is never
 * used: iresnet_open, or iresnet_infer at a batch size that is new, returns IRESNET_WRONG_ANSWERS. */
typedef enum iresnet_answers {
    IRESNET_ANSWERS_UNCHECKED = 0,  /* the bundle has none, or self_test is "never" */
    IRESNET_ANSWERS_PASSED = 1,     /* here, now or earlier */
    IRESNET_ANSWERS_CANNOT_TELL = 2 /* the floor is so low that a wrong plan may reach it */
} iresnet_answers;

typedef struct iresnet_info {
    size_t size;                     /* set to sizeof(iresnet_info) before the call */
    int32_t height, width, channels; /* of the uint8 input, channels are R, G, B */
    int32_t num_classes;             /* columns of the logits */
    int32_t top_k;                   /* columns of scores and classes */
    int32_t max_batch;               /* of one run on the device; iresnet_infer splits larger batches */
    int32_t in_flight;               /* threads that keep the device busy */
    int32_t trained;                 /* 0: random weights */
    int32_t device_pointers;         /* 1: iresnet_infer_device works on this target */
    int32_t known_answers;           /* an iresnet_answers */
    float known_answers_db;          /* lowest SQNR of the logits of them, dB; infinite where all were equal */
    float known_answers_floor_db;    /* what was asked for */
    const char *target;              /* "openvino"; this and the next two are UTF-8 and valid until the runner is closed */
    const char *device;              /* "CPU (AMD EPYC, 2 threads)" */
    const char *notes;               /* what a user should know, a line each: targets that could not be used; "" for none */
} iresnet_info;

/* Buffers of the caller for the results of a batch, with their sizes in bytes, which must be exact.
 * iresnet_infer skips a pointer that is NULL. Row-major, best class first. */
typedef struct iresnet_outputs {
    size_t size;          /* sizeof(iresnet_outputs) */
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

/* Open a bundle: its hashes, version and GPU are checked, then its known answers, before it answers anything.
 * bundle is a UTF-8 path of at most 4095 bytes. *runner is set on success only. options may be NULL. */
iresnet_status iresnet_open(const char *bundle, const iresnet_options *options, iresnet_runner **runner);

/* Needs no interpreter and waits for none; nor does iresnet_label. */
iresnet_status iresnet_get_info(const iresnet_runner *runner, iresnet_info *info);

/* Name of a class, UTF-8; valid until the runner is closed. */
iresnet_status iresnet_label(const iresnet_runner *runner, int32_t index, const char **label);

/* Resize and crop a picture as the model was trained: rgb holds height rows of width pixels of 3 bytes, a row every
 * row_bytes bytes. image receives height * width * 3 bytes of iresnet_info, which is image_bytes. */
iresnet_status iresnet_preprocess(const iresnet_runner *runner, const uint8_t *rgb, int32_t width, int32_t height,
                                  size_t row_bytes, uint8_t *image, size_t image_bytes);

/* Classify pre-processed images in host memory, uint8 [batch, height, width, 3] in images_bytes bytes, any batch from 1.
 * Returns when the outputs are written. */
iresnet_status iresnet_infer(const iresnet_runner *runner, const uint8_t *images, size_t images_bytes, int32_t batch,
                             const iresnet_outputs *outputs);

/* The same in device memory, on a stream (cudaStream_t, CUstream) of the device's primary context, NULL for the default
 * stream. Copies nothing and does not wait: the outputs are ready for what comes behind on that stream, and the memory
 * must stay until then. Pointers are multiples of 256 bytes; all three outputs are needed; batch is at most max_batch.
 * IRESNET_UNSUPPORTED on targets without device memory. */
iresnet_status iresnet_infer_device(const iresnet_runner *runner, const void *images, size_t images_bytes,
                                    int32_t batch, const iresnet_outputs *outputs, void *stream);

/* Wait for the calls under way on this runner and release it; later calls on it fail. NULL does nothing. After the end
 * of the interpreter, which released it, IRESNET_OK. */
iresnet_status iresnet_close(iresnet_runner *runner);

#ifdef __cplusplus
}
#endif
#endif
