/* Feeds damaged JPEG files to jpeg_to_input(). Built with sanitizers and started by run.py.

   fuzz_jpeg SEED SECONDS FILE...   prints how many files were decoded and refused; a crash or a hang ends it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "jpeg.h"

static uint64_t state;

static uint32_t
dice(uint32_t sides) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % sides;
}

/* A damaged copy, in memory of exactly its size. */
static uint8_t *
damage(const uint8_t *data, size_t size, size_t *damaged_size) {
    uint8_t *room = malloc(size), *copy;
    memcpy(room, data, size);
    for (uint32_t edits = dice(6); edits; edits--) {
        uint32_t at = dice(2) ? dice((uint32_t)size) : dice(size < 700 ? (uint32_t)size : 700); /* headers count more */
        uint32_t length = dice(40), from = dice((uint32_t)size);
        switch (dice(5)) {
        case 0:
            room[at] = (uint8_t)dice(256);
            break;
        case 1:
            room[at] ^= (uint8_t)(1 << dice(8));
            break;
        case 2: /* a marker */
            room[at] = 0xFF;
            room[(at + 1) % size] = (uint8_t)(0xC0 + dice(64));
            break;
        case 3: /* bytes from elsewhere */
            length = length < size - at ? length : (uint32_t)size - at;
            length = length < size - from ? length : (uint32_t)size - from;
            memmove(room + at, room + from, length);
            break;
        default:
            room[at] = dice(2) ? 0xFF : 0;
        }
    }
    if (dice(3) == 0) {
        size = 1 + dice((uint32_t)size);
    }
    if (dice(3) == 0 && size >= 2) { /* so that what comes behind the last row is not looked at */
        room[size - 2] = 0xFF;
        room[size - 1] = 0xD9;
    }
    copy = malloc(size);
    memcpy(copy, room, size);
    free(room);
    *damaged_size = size;
    return copy;
}

int
main(int count, char **arguments) {
    if (count < 4) {
        return 2;
    }
    state = strtoull(arguments[1], NULL, 10) * 0x9E3779B97F4A7C15u + 1;
    time_t end = time(NULL) + atol(arguments[2]);
    uint8_t **files = malloc(count * sizeof(*files));
    size_t *sizes = malloc(count * sizeof(*sizes));
    for (int i = 3; i < count; i++) {
        FILE *file = fopen(arguments[i], "rb");
        if (!file) {
            return 2;
        }
        files[i] = malloc(1 << 20);
        sizes[i] = fread(files[i], 1, 1 << 20, file);
        fclose(file);
    }
    long decoded = 0, refused = 0;
    while (time(NULL) < end) {
        int pick = 3 + (int)dice((uint32_t)count - 3);
        size_t size;
        uint8_t *data = damage(files[pick], sizes[pick], &size);
        Options options = {
            .resize = 1 + (int)dice(80), .crop = 1 + (int)dice(80), .filter = 1 + (int)dice(2),
            .tall_first = (int)dice(2), .shortest = dice(2) ? 1 + (int)dice(60) : 0, .max_pixels = 1 << 22,
            .kernel = dice(2) ? &portable_kernel : best_kernel(),
        };
        uint8_t *out = malloc((size_t)options.crop * options.crop * 3);
        alarm(30); /* one file may not take longer */
        jpeg_to_input(data, size, &options, out) ? refused++ : decoded++;
        free(out);
        free(data);
    }
    alarm(0);
    printf("%ld decoded, %ld refused\n", decoded, refused);
    for (int i = 3; i < count; i++) {
        free(files[i]);
    }
    free(files);
    free(sizes);
    return 0;
}
