// Calls the exported probe with metadata as the elements leave it; the test knows what it has to print.
#include <cstdio>

#include "nvdspreprocess_meta.h"

extern "C" GstPadProbeReturn IResNetProbe(GstPad *, GstPadProbeInfo *, gpointer);

static void call(const char *what, NvDsBatchMeta *batch)
{
    GstPadProbeInfo info{0, 0, batch};
    std::printf("%s\n", what);
    if (IResNetProbe(nullptr, &info, nullptr) != GST_PAD_PROBE_OK)
        std::printf("dropped\n");
}

int main()
{
    char longer[] = "a name in memory of its own";
    NvDsLabelInfo bird{"bird", nullptr, 3, 0.75f}, cut{"a name", longer, 8, 0.5f}, car{"car", nullptr, 1, 0.9f};
    GList cuts{&cut, nullptr, nullptr}, birds{&bird, &cuts, nullptr}, cars{&car, nullptr, nullptr};
    NvDsClassifierMeta ours{1, &birds}, other{7, &cars}, same_id{1, &cars};
    GList others{&other, nullptr, nullptr}, both{&ours, &others, nullptr}, one{&same_id, nullptr, nullptr};

    // An object of a detector, whose classifier happens to have the same number.
    NvDsObjectMeta object{{1, 2, 30, 40}, &one};
    GList objects{&object, nullptr, nullptr};
    NvDsFrameMeta frame{2, 41, &objects};
    GList frames{&frame, nullptr, nullptr};

    GstNvDsPreProcessBatchMeta prepared{{5, 1}, {{{420, 0, 1080, 1080}, &frame, &both}}}, elsewhere{{9}, {}};
    NvDsUserMeta user{{NVDS_PREPROCESS_BATCH_META}, &prepared}, foreign{{NVDS_USER_META}, nullptr},
        unrelated{{NVDS_PREPROCESS_BATCH_META}, &elsewhere};
    GList last{&user, nullptr, nullptr}, middle{&unrelated, &last, nullptr}, first{&foreign, &middle, nullptr};

    NvDsBatchMeta regions{&frames, &first}, plain{&frames, nullptr};
    middle.next = &last;
    call("regions", &regions);
    call("plain", &plain);
    middle.next = nullptr;
    call("prepared for another", &regions);
    call("nothing", nullptr);
    return 0;
}
