"""A folder for NVIDIA DeepStream: configurations, a Triton model, and the small library that the network needs.

What DeepStream's elements can do with an input of uint8 ``[N, H, W, 3]`` (read in their sources, releases 6.2 to 9.2):

* **Gst-nvinfer** converts frames to float32 itself, NCHW or NHWC, and cannot be told to leave them uint8: it would
  write four bytes for each one of the input. It only takes uint8 tensors that were made before it
  (``input-tensor-from-meta``), and knows the type from DeepStream 8.0 on.
* **Gst-nvdspreprocess** makes such tensors, but its stock library writes float32 or float16 whatever
  ``tensor-data-type`` says. ``iresnet_tensor.cpp`` writes uint8.
* **Gst-nvinferserver** makes packed uint8 tensors as it is, for a model in Triton.

So the folder holds two ways: nvinferserver, and nvdspreprocess with nvinfer. Both take the classes from the network's
own top-k with ``iresnet_parser.cpp``. With tensors from metadata the result hangs on the region of interest, otherwise
on an object as large as the frame; ``iresnet_probe.cpp`` shows where to read it. None of them resizes a picture as the
network was trained; see :func:`centre`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from infer.bundle import Manifest, find_plan, read_labels, read_manifest
from infer.errors import InputError
from infer.export.triton import TritonOptions, export_triton
from infer.export.triton_config import quote
from infer.files import replacing_folder

LIBRARY = "libiresnet_deepstream.so"
_MARK = "config_nvinferserver.txt"
# In the folder, in the package's data.
_SOURCES = {
    "iresnet_parser.cpp": "iresnet_parser.cpp",
    "iresnet_tensor.cpp": "iresnet_tensor.cpp",
    "iresnet_probe.cpp": "iresnet_probe.cpp",
    "Makefile": "deepstream.mk",
}
# NvBufSurfTransform_Inter: bilinear does not antialias; "Algo2" is the super-sampling of the GPU.
_BILINEAR, _SUPER = 1, 3


@dataclass(frozen=True)
class DeepStreamOptions:
    """What the pipeline looks like.

    Attributes:
        width, height: of the source's frames, pixels.
        sources: streams; one frame of each makes a batch.
        threshold: probability below which a frame gets no class.
        link: hard link to the plan in place of a copy.
        allow_untrained: export although the weights are random.
    """

    width: int = 1920
    height: int = 1080
    sources: int = 1
    threshold: float = 0.5
    link: bool = False
    allow_untrained: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.sources) < 1:
            raise InputError(
                f"expected frames and sources from 1, found {self.width} x {self.height} and {self.sources} sources"
            )
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold: expected a probability, found {self.threshold}")


@dataclass(frozen=True)
class Centre:
    """The square of a frame that the network sees: offset and side in its pixels, and the filter to scale it with."""

    left: int
    top: int
    side: int
    filter: int


def centre(manifest: Manifest, width: int, height: int) -> Centre:
    """What is left of a frame when its short side is resized and the centre cropped, seen in the source.

    Rounded to even pixels, which NV12 needs. DeepStream's scaler is not Pillow's, so grey levels differ by more than
    the one that the bundle's own pre-processing keeps: measure the accuracy of the pipeline.

    Raises:
        InputError: the model pads its pictures, or the frame is too small.
    """
    resize, crop = manifest.preprocessing.resize, manifest.preprocessing.crop
    if crop > resize:
        raise InputError(
            f"the model pads pictures from {resize} to {crop} pixels, which DeepStream cannot; resize before"
        )
    side = _even(min(width, height) * crop / resize)
    if side < 2:
        raise InputError(f"frames of {width} x {height} pixels are too small")
    scaling = _SUPER if side > crop else _BILINEAR
    return Centre(_even((width - side) / 2), _even((height - side) / 2), side, scaling)


def _even(value: float) -> int:
    return int(value) // 2 * 2


def export_deepstream(bundle: Path, folder: Path, options: DeepStreamOptions | None = None) -> Path:
    """Write the folder; it appears whole or not at all.

    Returns:
        ``folder``.

    Raises:
        BundleError: the bundle is damaged or has no plan for the ``tensorrt`` target.
        UntrainedError: random weights, without ``allow_untrained``.
        InputError: more sources than the plan's largest batch, frames too small, or other files in the folder.
    """
    options = options or DeepStreamOptions()
    manifest = read_manifest(bundle)
    find_plan(bundle, manifest, "tensorrt")
    if not manifest.batch.min <= options.sources <= manifest.batch.max:
        raise InputError(
            f"sources: the plan takes batches of {manifest.batch.min} to {manifest.batch.max}, found {options.sources}"
        )
    region = centre(manifest, options.width, options.height)
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise InputError(f"{folder} holds other files and would be replaced; pass a new folder")
    with replacing_folder(folder) as work:
        serving = TritonOptions(
            target="tensorrt", instances=1, queue_delay=0, link=options.link, allow_untrained=options.allow_untrained
        )
        model = export_triton(bundle, work / "triton", serving).name
        for name, packaged in _SOURCES.items():
            (work / name).write_bytes(files(__package__).joinpath(packaged).read_bytes())
        texts = {
            "labels.inc": "".join(f"{quote(label)},\n" for label in read_labels(bundle, manifest)),
            _MARK: _nvinferserver(manifest, model, region, options),
            "config_nvinfer.txt": _nvinfer(manifest, model, options),
            "config_nvdspreprocess.txt": _nvdspreprocess(manifest, region, options),
            "README.txt": _readme(manifest, region, options),
        }
        for name, text in texts.items():
            (work / name).write_text(text, encoding="utf-8")
    return folder


def _nvinferserver(manifest: Manifest, model: str, region: Centre, options: DeepStreamOptions) -> str:
    """Fields as in DeepStream's ``nvdsinferserver_plugin.proto`` and the files it imports."""
    return f"""\
infer_config {{
  unique_id: 1
  gpu_ids: [ 0 ]
  max_batch_size: {options.sources}
  backend {{
    triton {{
      model_name: {quote(model)}
      version: -1
      model_repo {{ root: "./triton" strict_model_config: true }}
    }}
    output_mem_type: MEMORY_TYPE_CPU
  }}
  preprocess {{
    network_format: IMAGE_FORMAT_RGB
    tensor_order: TENSOR_ORDER_NHWC
    tensor_name: {quote(manifest.inputs[0].name)}
    maintain_aspect_ratio: 0
    frame_scaling_hw: FRAME_SCALING_HW_GPU
    frame_scaling_filter: {region.filter}
    normalize {{ scale_factor: 1.0 }}
  }}
  postprocess {{
    classification {{ threshold: {options.threshold} custom_parse_classifier_func: "IResNetParseClassifier" }}
  }}
  custom_lib {{ path: "./{LIBRARY}" }}
}}
input_control {{ process_mode: PROCESS_MODE_FULL_FRAME }}
"""


def _nvinfer(manifest: Manifest, model: str, options: DeepStreamOptions) -> str:
    height, width, channels = manifest.inputs[0].shape[1:]
    return f"""\
[property]
gpu-id=0
gie-unique-id=1
model-engine-file=triton/{model}/1/model.plan
batch-size={options.sources}
# full frames, classifier
process-mode=1
network-type=1
# nvinfer's own pre-processing writes float32; the uint8 tensor comes from nvdspreprocess
input-tensor-from-meta=1
network-input-order=1
infer-dims={channels};{height};{width}
model-color-format=0
classifier-threshold={options.threshold}
parse-classifier-func-name=IResNetParseClassifier
custom-lib-path={LIBRARY}
"""


def _nvdspreprocess(manifest: Manifest, region: Centre, options: DeepStreamOptions) -> str:
    height, width, channels = manifest.inputs[0].shape[1:]
    sources = range(options.sources)
    square = f"{region.left};{region.top};{region.side};{region.side}"
    rois = "\n".join(f"roi-params-src-{number}={square}" for number in sources)
    return f"""\
[property]
enable=1
target-unique-ids=1
process-on-frame=1
# 1 is NHWC
network-input-order=1
network-input-shape={options.sources};{height};{width};{channels}
# 0 is RGB
network-color-format=0
# 1 is UINT8
tensor-data-type=1
tensor-name={manifest.inputs[0].name}
processing-width={width}
processing-height={height}
maintain-aspect-ratio=0
scaling-buf-pool-size=6
tensor-buf-pool-size=6
scaling-pool-memory-type=0
scaling-pool-compute-hw=1
scaling-filter={region.filter}
custom-lib-path={LIBRARY}
custom-tensor-preparation-function=IResNetPrepareTensor

[user-configs]
pixel-normalization-factor=1.0

[group-0]
src-ids={";".join(map(str, sources))}
custom-input-transformation-function=IResNetTransform
process-on-roi=1
{rois}
"""


def _readme(manifest: Manifest, region: Centre, options: DeepStreamOptions) -> str:
    spec = manifest.preprocessing
    crop = f"{region.left}:{region.top}:{region.side}:{region.side}"
    mux = f"nvstreammux name=mux batch-size={options.sources}"
    untrained = "" if manifest.model.trained else "\nUNTRAINED: random weights; the classes mean nothing.\n"
    return f"""\
{manifest.model.name}, {manifest.precision}, for NVIDIA DeepStream
{untrained}
First build the library, in a DeepStream 8.0 container or later: make

The network was trained on pictures whose short side is {spec.resize} and of which it sees the centre
{spec.crop} x {spec.crop}. In frames of {options.width} x {options.height} pixels that is the square {crop}
(left:top:width:height). Feeding whole frames, squeezed into a square, costs accuracy. DeepStream's scaler is another
than the one of training in any case: measure the accuracy of the pipeline.

1. Gst-nvinferserver, with the model in Triton. It makes uint8 [N, H, W, 3] itself, but cannot cut: nvvideoconvert does.

gst-launch-1.0 uridecodebin uri=file:///video.mp4 ! nvvideoconvert src-crop={crop} \\
  ! 'video/x-raw(memory:NVMM),width={region.side},height={region.side}' ! mux.sink_0 \\
  {mux} width={region.side} height={region.side} \\
  ! nvinferserver config-file-path=config_nvinferserver.txt ! fakesink

2. Gst-nvdspreprocess and Gst-nvinfer, with the plan itself. nvinfer's own pre-processing makes float32 only and must
stay off; nvdspreprocess cuts the square and makes the tensors, with IResNetPrepareTensor of the library.

gst-launch-1.0 uridecodebin uri=file:///video.mp4 ! mux.sink_0 \\
  {mux} width={options.width} height={options.height} \\
  ! nvdspreprocess config-file=config_nvdspreprocess.txt ! nvinfer config-file-path=config_nvinfer.txt ! fakesink

Where the best class of a frame is, from probability {options.threshold}: in 1. the element makes an object as large as
the frame and hangs it there, as classifier metadata. In 2. there is no object: with tensors from metadata it hangs on
the region of interest (NvDsRoiMeta.classifier_meta_list, in the GstNvDsPreProcessBatchMeta of the batch's user
metadata), where elements that look at objects, such as nvdsosd and nvmsgconv, do not see it. iresnet_probe.cpp reads
both; the library has it as IResNetProbe, for gst_pad_add_probe on the source pad of the element.
"""
