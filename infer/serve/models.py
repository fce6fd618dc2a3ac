"""The models of a server: names and versions, loaded and unloaded while requests run."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from infer.bundle import MANIFEST, read_manifest
from infer.errors import InputError, IResNetError
from infer.serve.decoders import Decoders
from infer.serve.metrics import Metrics, ModelMetrics
from infer.serve.model import Model
from infer.serve.opening import EarlyOpening, open_warm, resident_bytes
from infer.serve.options import ENCODED, ServeOptions, Source, is_name, is_version
from infer.serve.refusal import Refusal

_LOG = logging.getLogger(__name__)


class Row(NamedTuple):
    """One line of the index: READY, LOADING or UNAVAILABLE, and why."""

    name: str
    version: str
    state: str
    reason: str


class Models:
    """Loaded models. Every method but the loading itself runs in the event loop.

    Args:
        options: of the server.
        decoders: threads that decode, for all models.
        metrics: of the server.
        on_broken: see :class:`infer.serve.model.Model`.
        early: a bundle that is being opened already.
    """

    def __init__(
        self,
        options: ServeOptions,
        decoders: Decoders,
        metrics: Metrics,
        on_broken: Callable[[Exception], None],
        early: EarlyOpening | None = None,
    ) -> None:
        self._options, self._decoders, self._metrics, self._on_broken = options, decoders, metrics, on_broken
        self._early = early
        self._table: dict[str, dict[str, Model]] = {}
        self._of_models: dict[tuple[str, str], ModelMetrics] = {}
        self._loading: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._named: list[Source] = []

    @property
    def repository_allowed(self) -> bool:
        """Whether clients may load and unload."""
        return self._options.repository is not None

    @property
    def several(self) -> bool:
        """Whether a request must say which model it means."""
        return len(self._table) > 1

    async def load_first(self) -> None:
        """Load what the server was started with.

        Raises:
            IResNetError: a bundle cannot be served.
        """
        self._named = await asyncio.to_thread(name_sources, self._options.sources)
        for name in dict.fromkeys(str(source.name) for source in self._named):
            await self._load(name, [source for source in self._named if source.name == name])

    def loaded(self) -> list[Model]:
        """Every loaded version, by name, oldest version first."""
        return [model for versions in self._table.values() for model in versions.values()]

    def find(self, name: str | None, version: str | None = None) -> Model:
        """A loaded model; of several versions the highest unless one is named. None: the only model there is.

        Raises:
            Refusal: 404; 400 where no name is given and there are several.
        """
        if not name:
            if len(self._table) > 1:
                raise Refusal(400, f"model: expected the name of one of {', '.join(sorted(self._table))}")
            name = next(iter(self._table), "")
        versions = self._table.get(name) or self._table.get(name.removesuffix(ENCODED))
        if not versions:
            known = ", ".join(sorted(self._table)) or "none"
            raise Refusal(404, f"model: there is no model {name[:128]!r} here; loaded: {known}")
        if not version:
            return versions[max(versions, key=int)]
        if version not in versions:
            raise Refusal(
                404, f"version: model {name!r} has no version {version[:16]!r} here; loaded: {', '.join(versions)}"
            )
        return versions[version]

    def versions(self, name: str) -> list[str]:
        """Loaded versions of a model, lowest first."""
        return sorted(self._table.get(name.removesuffix(ENCODED), {}), key=int)

    async def index(self) -> list[Row]:
        """What is loaded, and what could be."""
        rows = {(m.name, m.version): Row(m.name, m.version, "READY", "") for m in self.loaded()}
        for source in await asyncio.to_thread(self._sources, None):
            name, version = str(source.name), str(source.version)
            state = "LOADING" if name in self._loading else "UNAVAILABLE"
            rows.setdefault((name, version), Row(name, version, state, "" if state == "LOADING" else "unloaded"))
        return sorted(rows.values())

    async def load(self, name: str) -> None:
        """Load all versions of a model from the command line's bundles and the repository; again, where it is loaded.

        The old versions answer until the new ones are ready, and finish what they have.

        Raises:
            Refusal: 403 not allowed, 404 unknown, 507 too many or too large, 400 the bundle cannot be served.
        """
        self._require_allowed()
        if not is_name(name) or not (sources := await asyncio.to_thread(self._sources, name)):
            raise Refusal(404, f"model: the repository has no model {name[:128]!r}")
        try:
            await self._load(name, sources)
        except IResNetError as error:
            _LOG.error("%s cannot be loaded: %s", name, error)
            raise Refusal(
                400, f"model: {name!r} cannot be loaded ({type(error).__name__}); the server's log says why"
            ) from error

    async def unload(self, name: str) -> None:
        """Take a model away; it finishes what it has.

        Raises:
            Refusal: 403 not allowed, 404 not loaded.
        """
        self._require_allowed()
        if name not in self._table:
            raise Refusal(404, f"model: {name[:128]!r} is not loaded")
        for model in self._table.pop(name).values():
            self._retire(model, forget=True)

    async def close(self) -> None:
        """Finish everything and release the devices."""
        models = self.loaded()
        self._table.clear()
        for model in models:
            self._retire(model, forget=False)
        while self._retiring:
            await asyncio.wait(self._retiring)

    def _require_allowed(self) -> None:
        if not self.repository_allowed:
            raise Refusal(403, "loading and unloading is off; start the server with --repository FOLDER")

    async def _load(self, name: str, sources: list[Source]) -> None:
        async with self._one_at_a_time:
            self._loading.add(name)
            opened: dict[str, Model] = {}
            try:
                for source in sources:
                    self._require_room(source, opened)
                    model = await asyncio.to_thread(self._open, source)
                    opened[model.version] = model
                    self._require_memory(name, opened, 0)
            except BaseException:
                for model in opened.values():
                    self._retire(model, forget=False)
                raise
            finally:
                self._loading.discard(name)
            old = self._table.get(name, {})
            self._table[name] = dict(sorted(opened.items(), key=lambda pair: int(pair[0])))
            for model in old.values():
                self._retire(model, forget=model.version not in opened)

    def _require_room(self, source: Source, opened: dict[str, Model]) -> None:
        limits, count = self._options.limits, len(self.loaded()) + len(opened)
        if count >= limits.max_models:
            raise Refusal(
                507, f"model: {count} versions are loaded, the limit is {limits.max_models}; unload one first"
            )
        self._require_memory(str(source.name), opened, plan_bytes(source.folder))

    def _require_memory(self, name: str, opened: dict[str, Model], more: int) -> None:
        most = self._options.limits.max_model_memory
        used = sum(model.memory for model in (*self.loaded(), *opened.values()))
        if most is not None and used + more > most:
            raise Refusal(507, f"model: {name!r} does not fit, loaded models may take {most} bytes; unload one first")

    def _open(self, source: Source) -> Model:
        """Open, warm up and check; in a thread."""
        options = self._options
        opened = None if self._early is None else self._early.take(source)
        runner, before = open_warm(source, options) if opened is None else opened
        key = (str(source.name), str(source.version))
        metrics = self._of_models.setdefault(key, ModelMetrics(self._metrics, *key))
        metrics.describe(
            target=runner.target, device=runner.backend.device, precision=runner.manifest.precision,
            instruction_set=runner.backend.instruction_set,
        )  # fmt: skip
        model = Model(*key, runner, options.limits, self._decoders, metrics, options.max_delay, self._on_broken)
        model.memory = max(resident_bytes() - before, plan_bytes(source.folder, runner.target))
        return model

    def _retire(self, model: Model, *, forget: bool) -> None:
        async def retire() -> None:
            await model.idle()
            await asyncio.to_thread(model.close)
            if forget:
                with suppress(KeyError):
                    model.metrics.forget()

        def free(task: asyncio.Task[None]) -> None:
            self._retiring.discard(task)
            # Engines hang in circles of references; their memory is not to wait until Python looks for such.
            loop.run_in_executor(None, gc.collect)

        loop = asyncio.get_running_loop()
        task = loop.create_task(retire())
        self._retiring.add(task)
        task.add_done_callback(free)

    def _sources(self, name: str | None) -> list[Source]:
        """Versions of ``name``, or of all models, of the command line and the repository."""
        found = {(s.name, s.version): s for s in self._named if name in (None, s.name)}
        if (root := self._options.repository) is not None:
            for folder in [root / name] if name is not None else _folders(root):
                for source in repository_sources(folder):
                    found.setdefault((source.name, source.version), source)
        return list(found.values())


def name_sources(sources: tuple[Source, ...]) -> list[Source]:
    """Give every source a name and a version.

    Raises:
        BundleError: a bundle cannot be read.
        InputError: a version of a model is there twice, or a bundle's own name cannot be one.
    """
    named: list[Source] = []
    for source in sources:
        name = source.name
        if name is None:
            manifest = read_manifest(source.folder)
            name = f"{manifest.model.name}-{manifest.precision}"
            if not is_name(name):
                raise InputError(f"{source.folder}: its name {name!r} cannot be that of a model; pass NAME=FOLDER")
        taken = {one.version for one in named if one.name == name}
        version = source.version
        if version is None:
            version = str(1 + max((int(str(one)) for one in taken), default=0))
        elif version in taken:
            raise InputError(f"model {name}: version {version} is there twice")
        named.append(Source(source.folder, name, version))
    return named


def repository_sources(folder: Path) -> list[Source]:
    """Bundles of a model's folder in a repository: the folder itself, version 1, or its numbered folders."""
    if not is_name(folder.name):
        return []
    if (folder / MANIFEST).is_file():
        return [Source(folder, folder.name, "1")]
    inner = sorted((path for path in _folders(folder) if is_version(path.name)), key=lambda path: int(path.name))
    return [Source(path, folder.name, path.name) for path in inner if (path / MANIFEST).is_file()]


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        return []


def plan_bytes(folder: Path, target: str | None = None) -> int:
    """Bytes of a bundle's plans, or of that of ``target``: what a loaded model takes at least."""
    manifest = read_manifest(folder)
    sizes = [sum(f.size for f in plan.files) for plan in manifest.plans if target in (None, plan.target)]
    return min(sizes, default=manifest.graph.size) if target is None else max(sizes, default=manifest.graph.size)
