/* Decodes only the rows and columns that the crop needs and resizes them row by row, as they come. */
#include "jpeg.h"

#include <setjmp.h>
#include <stdio.h> /* jpeglib.h needs it */
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "exif.h"

/* jpeg_crop_scanline() and jpeg_skip_scanlines() had defects before. */
#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "libjpeg-turbo 2.1 or newer is needed"
#endif

/* Encoders write about ten. Every further one costs a pass over all blocks for a few bytes of file. */
#define MAX_SCANS 500

typedef struct {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf failed;
    const char *reason;

    const Options *options;
    Turn turn;
    Weights across, down; /* in the directions of the stored image */
    int down_first;
    int pad_across, pad_down;
    int left, width, top, bottom; /* the part of the stored image that is needed: columns, and rows [top, bottom) */
    uint8_t *buffer;              /* owns the rows below */
    uint8_t *source;              /* one decoded row */
    uint8_t *result;              /* one row of the output */
    uint8_t *ring;                /* rows between the passes: row r at r % slots */
    size_t stride;                /* of the ring, bytes */
    int slots;
    const uint8_t **rows; /* the rows of one weighted sum */
} Decoder;

static void
refuse(Decoder *decoder, const char *reason) {
    decoder->reason = reason;
    longjmp(decoder->failed, 1);
}

static void
on_error(j_common_ptr jpeg) {
    refuse(jpeg->client_data, "libjpeg refuses it");
}

/* A warning is damage or truncation. What to make of that is not decided here. */
static void
on_message(j_common_ptr jpeg, int level) {
    if (level < 0) {
        refuse(jpeg->client_data, "damaged or truncated");
    }
}

static void
on_progress(j_common_ptr jpeg) {
    if (jpeg->is_decompressor && ((j_decompress_ptr)jpeg)->input_scan_number > MAX_SCANS) {
        refuse(jpeg->client_data, "too many scans");
    }
}

static void
ignore_text(j_common_ptr jpeg) {
    (void)jpeg;
}

/* Kinds for which a decoded region was seen to equal that of the whole image, with and without its edges. */
static int
is_plain(const struct jpeg_decompress_struct *jpeg) {
    const jpeg_component_info *parts = jpeg->comp_info;
    if (jpeg->data_precision != 8 || jpeg->arith_code) {
        return 0;
    }
    if (jpeg->jpeg_color_space == JCS_GRAYSCALE && jpeg->num_components == 1) {
        return parts[0].h_samp_factor == 1 && parts[0].v_samp_factor == 1;
    }
    if (jpeg->jpeg_color_space != JCS_YCbCr || jpeg->num_components != 3) {
        return 0;
    }
    for (int i = 1; i < 3; i++) {
        if (parts[i].h_samp_factor != 1 || parts[i].v_samp_factor != 1) {
            return 0;
        }
    }
    return parts[0].h_samp_factor <= 2 && parts[0].v_samp_factor <= 2;
}

/* A file that lacks refinements of its coefficients is smoothed across blocks, differently from version to version. */
static int
is_complete(const struct jpeg_decompress_struct *jpeg) {
    if (!jpeg->progressive_mode || !jpeg->coef_bits) {
        return 1;
    }
    for (int part = 0; part < jpeg->num_components; part++) {
        for (int i = 0; i < DCTSIZE2; i++) {
            if (jpeg->coef_bits[part][i] != 0) {
                return 0;
            }
        }
    }
    return 1;
}

static int
read_turn(const struct jpeg_decompress_struct *jpeg, Turn *turn) {
    ExifSearch search = {0};
    for (jpeg_saved_marker_ptr marker = jpeg->marker_list; marker; marker = marker->next) {
        exif_segment(&search, marker->data, marker->data_length);
    }
    return exif_turn(&search, turn);
}

/* From the sizes to weights, and to the part of the image that they need. */
static void
plan(Decoder *decoder) {
    const Options *options = decoder->options;
    int swap = decoder->turn.swap;
    int width = (int)decoder->jpeg.output_width, height = (int)decoder->jpeg.output_height;
    int shorter = width < height ? width : height, longer = width < height ? height : width;
    /* torchvision: int(resize * long / short); the product is exact in a double */
    int resized = (int)((double)options->resize * longer / shorter);
    int resized_width = width <= height ? options->resize : resized;
    int resized_height = width <= height ? resized : options->resize;
    Axis x = axis_plan(width, resized_width, options->crop);
    Axis y = axis_plan(height, resized_height, options->crop);

    if (weights_init(&decoder->across, &x, options->filter, decoder->turn.mirror_x) ||
        weights_init(&decoder->down, &y, options->filter, decoder->turn.mirror_y) ||
        options->kernel->prepare(&decoder->across)) {
        refuse(decoder, "no memory");
    }
    decoder->pad_across = x.pad;
    decoder->pad_down = y.pad;
    /* Pillow 13: height first where that loses much more pixels; height and width of the upright image. */
    int saved_x = swap ? height - resized_height : width - resized_width;
    int saved_y = swap ? width - resized_width : height - resized_height;
    int height_first = options->tall_first && saved_y > 0 && saved_y > 2 * saved_x;
    decoder->down_first = height_first != swap;

    const Weights *across = &decoder->across, *down = &decoder->down;
    decoder->left = across->first[0];
    decoder->width = across->first[across->length - 1] + across->count[across->length - 1] - decoder->left;
    decoder->top = down->first[0];
    decoder->bottom = down->first[down->length - 1] + down->count[down->length - 1];
}

static void
allocate(Decoder *decoder) {
    const Weights *down = &decoder->down;
    for (int i = 0; i < down->length; i++) {
        decoder->slots = down->count[i] > decoder->slots ? down->count[i] : decoder->slots;
    }
    size_t source = (size_t)decoder->jpeg.output_width * 4 + ROW_PADDING;
    size_t result = (size_t)decoder->across.length * 3 + ROW_PADDING;
    decoder->stride = decoder->down_first ? source : result;
    decoder->buffer = calloc(source + result + decoder->stride * decoder->slots, 1);
    decoder->rows = malloc(decoder->slots * sizeof(*decoder->rows));
    if (!decoder->buffer || !decoder->rows) {
        refuse(decoder, "no memory");
    }
    decoder->source = decoder->buffer;
    decoder->result = decoder->source + source;
    decoder->ring = decoder->result + result;
}

/* Row `j` of the output, counted as the stored rows are, to its place in the upright output. */
static void
store_row(const Decoder *decoder, int j, uint8_t *out) {
    const Turn *turn = &decoder->turn;
    const uint8_t *from = decoder->result;
    int count = decoder->across.length, crop = decoder->options->crop;
    int row = decoder->pad_down + (turn->mirror_y ? decoder->down.length - 1 - j : j);
    ptrdiff_t step = turn->swap ? (ptrdiff_t)crop * 3 : 3;
    out += (ptrdiff_t)row * (turn->swap ? 3 : (ptrdiff_t)crop * 3) + decoder->pad_across * step;
    if (step == 3 && !turn->mirror_x) {
        memcpy(out, from, (size_t)count * 3);
        return;
    }
    if (turn->mirror_x) {
        out += (count - 1) * step;
        step = -step;
    }
    for (int i = 0; i < count; i++, out += step, from += 3) {
        memcpy(out, from, 3);
    }
}

/* Rows of the decoded region in, rows of the output out, with only those rows kept that further output needs. */
static void
resample(Decoder *decoder, int origin, uint8_t *out) {
    const Kernel *kernel = decoder->options->kernel;
    const Weights *across = &decoder->across, *down = &decoder->down;
    int done = 0;
    for (int row = decoder->top; row < decoder->bottom; row++) {
        uint8_t *kept = decoder->ring + decoder->stride * (row % decoder->slots);
        JSAMPROW target = decoder->down_first ? kept : decoder->source;
        if (jpeg_read_scanlines(&decoder->jpeg, &target, 1) != 1) {
            refuse(decoder, "damaged or truncated");
        }
        if (!decoder->down_first) {
            kernel->across(across, decoder->source, origin, kept);
        }
        for (; done < down->length && down->first[done] + down->count[done] <= row + 1; done++) {
            int count = down->count[done];
            for (int k = 0; k < count; k++) {
                int slot = (down->first[done] + k) % decoder->slots;
                decoder->rows[k] = decoder->ring + decoder->stride * slot;
            }
            const int32_t *weights = down->weights + (size_t)done * down->taps;
            if (decoder->down_first) {
                int bytes = (int)decoder->jpeg.output_width * 4;
                kernel->down(decoder->rows, weights, count, bytes, decoder->source);
                kernel->across(across, decoder->source, origin, decoder->result);
            } else {
                kernel->down(decoder->rows, weights, count, across->length * 3, decoder->result);
            }
            store_row(decoder, done, out);
        }
    }
}

/* Restricts decoding to the columns that are needed; returns the first one decoded.

   Fancy upsampling looks at a neighbour on each side: two columns, where the chroma has half the resolution. */
static int
crop_columns(Decoder *decoder) {
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    JDIMENSION full = jpeg->output_width, left = decoder->left, right = decoder->left + decoder->width;
    left = left > 2 ? left - 2 : 0;
    right = right + 2 < full ? right + 2 : full;
    if (left == 0 && right == full) {
        return 0;
    }
    JDIMENSION width = right - left;
    jpeg_crop_scanline(jpeg, &left, &width);
    return (int)left;
}

static void
choose_scale(Decoder *decoder) {
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    JDIMENSION shorter = jpeg->image_width < jpeg->image_height ? jpeg->image_width : jpeg->image_height;
    jpeg->scale_num = jpeg->scale_denom = 1;
    if (decoder->options->shortest) {
        while (jpeg->scale_denom < 8 && shorter / (jpeg->scale_denom * 2) >= (JDIMENSION)decoder->options->shortest) {
            jpeg->scale_denom *= 2;
        }
    }
}

static void
decode(Decoder *decoder, const uint8_t *data, size_t size, uint8_t *out) {
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    jpeg_mem_src(jpeg, data, size);
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(jpeg, TRUE);
    if ((double)jpeg->image_width * jpeg->image_height > decoder->options->max_pixels) {
        refuse(decoder, "too many pixels");
    }
    if (!is_plain(jpeg)) {
        refuse(decoder, "an unusual kind of JPEG");
    }
    if (read_turn(jpeg, &decoder->turn)) {
        refuse(decoder, "unusual metadata");
    }
    choose_scale(decoder);
    jpeg->out_color_space = JCS_EXT_RGBX;
    jpeg_start_decompress(jpeg);
    if (!is_complete(jpeg)) {
        refuse(decoder, "refinements are missing");
    }
    plan(decoder);
    int origin = crop_columns(decoder);
    allocate(decoder);
    if (decoder->down.length < decoder->options->crop || decoder->across.length < decoder->options->crop) {
        memset(out, 0, (size_t)decoder->options->crop * decoder->options->crop * 3);
    }
    if (decoder->top > 0 && jpeg_skip_scanlines(jpeg, decoder->top) != (JDIMENSION)decoder->top) {
        refuse(decoder, "damaged or truncated");
    }
    resample(decoder, origin, out);
    /* A file that does not end as it should may be cut off below: the rest is then read, for its warnings. */
    if (data[size - 2] != 0xFF || data[size - 1] != JPEG_EOI) {
        JDIMENSION rest = jpeg->output_height - jpeg->output_scanline;
        JSAMPROW target = decoder->source;
        if (rest > 1) { /* asked to skip the last row too, libjpeg-turbo reads nothing at all */
            jpeg_skip_scanlines(jpeg, rest - 1);
        }
        if (rest > 0) {
            jpeg_read_scanlines(jpeg, &target, 1);
        }
        jpeg_finish_decompress(jpeg);
    }
}

const char *
jpeg_to_input(const uint8_t *data, size_t size, const Options *options, uint8_t *out) {
    if (size < 4) {
        return "damaged or truncated";
    }
    Decoder *decoder = calloc(1, sizeof(*decoder)); /* not on the stack: longjmp() may lose what registers held */
    if (!decoder) {
        return "no memory";
    }
    decoder->options = options;
    decoder->jpeg.err = jpeg_std_error(&decoder->errors);
    decoder->jpeg.client_data = decoder;
    decoder->errors.error_exit = on_error;
    decoder->errors.emit_message = on_message;
    decoder->errors.output_message = ignore_text;
    decoder->progress.progress_monitor = on_progress;
    if (setjmp(decoder->failed) == 0) {
        jpeg_create_decompress(&decoder->jpeg);
        decoder->jpeg.progress = &decoder->progress;
        decode(decoder, data, size, out);
    }
    const char *reason = decoder->reason;
    jpeg_destroy_decompress(&decoder->jpeg);
    weights_free(&decoder->across);
    weights_free(&decoder->down);
    free(decoder->rows);
    free(decoder->buffer);
    free(decoder);
    return reason;
}
