#include "exif.h"

#include <string.h>

#define XMP "http://ns.adobe.com/xap/1.0/"
#define XMP_ORIENTATION "tiff:Orientation"

enum { ORIENTATION = 0x0112, SHORT = 3, ENTRY_SIZE = 12 };

static uint32_t
number(const uint8_t *at, int bytes, int big) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) {
        value |= (uint32_t)at[i] << 8 * (big ? bytes - 1 - i : i);
    }
    return value;
}

/* The first directory of the TIFF structure inside; 0 where it is sound. */
static int
read_directory(ExifSearch *search, const uint8_t *tiff, size_t size) {
    if (size < 8 || (memcmp(tiff, "II*\0", 4) && memcmp(tiff, "MM\0*", 4))) {
        return -1;
    }
    int big = tiff[0] == 'M';
    uint32_t at = number(tiff + 4, 4, big);
    if (at > size || size - at < 2) {
        return -1;
    }
    uint32_t entries = number(tiff + at, 2, big);
    if ((size - at - 2) / ENTRY_SIZE < entries) {
        return -1;
    }
    for (const uint8_t *entry = tiff + at + 2; entries--; entry += ENTRY_SIZE) {
        if (number(entry, 2, big) != ORIENTATION) {
            continue;
        }
        if (search->orientation || number(entry + 2, 2, big) != SHORT || number(entry + 4, 4, big) != 1) {
            return -1;
        }
        int value = (int)number(entry + 8, 2, big);
        if (value < 1 || value > 8) {
            return -1;
        }
        search->orientation = value;
    }
    return 0;
}

void
exif_segment(ExifSearch *search, const uint8_t *data, size_t size) {
    if (size >= 6 && memcmp(data, "Exif\0\0", 6) == 0) {
        if (search->found++ || read_directory(search, data + 6, size - 6)) {
            search->odd = 1;
        }
    } else if (size > sizeof(XMP) && memcmp(data, XMP, sizeof(XMP)) == 0) {
        const size_t length = sizeof(XMP_ORIENTATION) - 1;
        for (size_t at = sizeof(XMP); at + length <= size && !search->xmp; at++) {
            search->xmp = memcmp(data + at, XMP_ORIENTATION, length) == 0;
        }
    }
}

int
exif_turn(const ExifSearch *search, Turn *turn) {
    static const Turn turns[] = {
        {0, 0, 0}, {0, 0, 0}, {1, 0, 0}, {1, 1, 0}, {0, 1, 0}, {0, 0, 1}, {0, 1, 1}, {1, 1, 1}, {1, 0, 1},
    };
    if (search->odd || (search->xmp && !search->orientation)) {
        return -1;
    }
    *turn = turns[search->orientation];
    return 0;
}
