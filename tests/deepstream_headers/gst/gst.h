// The declarations of GStreamer and GLib that the exported probe uses.
#pragma once
#include <cstdint>

typedef unsigned int guint;
typedef int gint;
typedef uint64_t guint64;
typedef void *gpointer;
typedef struct _GList GList;
struct _GList {
    gpointer data;
    GList *next, *prev;
};

typedef struct _GstPad GstPad;
typedef struct _GstBuffer GstBuffer;
typedef enum { GST_PAD_PROBE_DROP, GST_PAD_PROBE_OK } GstPadProbeReturn;
typedef struct {
    int type;
    unsigned long id;
    gpointer data;
} GstPadProbeInfo;
#define GST_PAD_PROBE_INFO_BUFFER(info) (static_cast<GstBuffer *>((info)->data))
