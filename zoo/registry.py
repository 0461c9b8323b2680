"""Finds plugins, files what they register, says who owns what; survives a broken plugin and remembers why."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from . import __version__, corehooks, hookspecs
from .discovery import find_entry_points
from .errors import MissingPart, PluginError, UnknownName, ZooError
from .specs import Architecture, Exporter, Precision, Runtime, Spec, absent, missing_part

if TYPE_CHECKING:
    from pathlib import Path

    from .parity import Candidate, Finding, Reference, Samples

S = TypeVar("S", bound=Spec)

BLOCK = "ZOO_BLOCK_PLUGINS"
"""Environment variable: plugin names, comma-separated, that are not loaded (``*`` blocks all but the core)."""


@dataclass(kw_only=True)
class Plugin:
    """One plugin as found: what it brought, or why it did not."""

    name: str
    distribution: str
    version: str
    specs: list[Spec] = field(default_factory=list)
    error: str = ""
    """Why the plugin, or one of its records, was left out; empty where all is well."""

    @property
    def owner(self) -> str:
        return f"{self.distribution} {self.version}"


class Registry:
    """The specs of every working plugin, by kind and name. Use :func:`get_registry`; tests build their own."""

    def __init__(self, *, discover: bool = True) -> None:
        self.plugins: list[Plugin] = []
        self._by_kind: dict[str, dict[str, tuple[Spec, Plugin]]] = {}
        self._aliases: dict[str, str] = {}
        self._manager = pluggy.PluginManager(hookspecs.GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.add("zoo", corehooks, "edgezoo", __version__)
        if discover:
            self._discover()

    # -- finding -----------------------------------------------------------------------------------------------

    def _discover(self) -> None:
        blocked = {n.strip() for n in os.environ.get(BLOCK, "").split(",") if n.strip()}
        for entry in find_entry_points(hookspecs.GROUP):
            dist, version = entry.distribution, entry.version
            if entry.name in blocked or "*" in blocked:
                self.plugins.append(
                    Plugin(name=entry.name, distribution=dist, version=version, error=f"blocked by {BLOCK}")
                )
                continue
            try:
                module = entry.load()
            except BaseException as error:  # a stranger's module may raise anything, SystemExit included
                if isinstance(error, KeyboardInterrupt):
                    raise
                self.plugins.append(
                    Plugin(
                        name=entry.name,
                        distribution=dist,
                        version=version,
                        error=f"import of {entry.value} failed: {type(error).__name__}: {error}",
                    )
                )
                continue
            self.add(entry.name, module, dist, version)

    def add(self, name: str, module: Any, distribution: str = "", version: str = "") -> Plugin:
        """Register one plugin module. A fault is kept in the returned record; nothing is raised."""
        plugin = Plugin(name=name, distribution=distribution, version=version)
        self.plugins.append(plugin)
        try:
            if self._manager.register(module, name=name) is None:
                raise PluginError(f"the name '{name}' is blocked")
            # check_pending looks at every plugin, so the offender must go before the next one is added
            self._manager.check_pending()
            register = getattr(module, "zoo_register", None)
            specs = list(register()) if register is not None else []
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if self._manager.get_plugin(name) is module:
                self._manager.unregister(module)
            plugin.error = f"{type(error).__name__}: {error}" if not isinstance(error, ZooError) else str(error)
            return plugin
        for spec in specs:
            self._file(spec, plugin)
        return plugin

    def _file(self, spec: Spec, plugin: Plugin) -> None:
        def refuse(why: str) -> None:
            plugin.error = f"{plugin.error}; {why}" if plugin.error else why

        if not isinstance(spec, Spec) or type(spec) is Spec:
            refuse(f"zoo_register delivered {spec!r}, which is not a spec record")
            return
        names = self._by_kind.setdefault(spec.kind, {})
        aliases = spec.aliases if isinstance(spec, Architecture) else ()
        if spec.name in names:
            refuse(f"{spec.kind} '{spec.name}' is already registered by {names[spec.name][1].owner}: left out")
            return
        names[spec.name] = (spec, plugin)
        plugin.specs.append(spec)
        for alias in aliases:
            if alias in self._aliases or alias in names:
                owner = self.owner("architecture", self._aliases.get(alias, alias)).owner
                refuse(f"alias '{alias}' of '{spec.name}' is already taken by {owner}: left out")
            else:
                self._aliases[alias] = spec.name

    # -- asking ------------------------------------------------------------------------------------------------

    def names(self, kind: type[Spec] | str) -> list[str]:
        return sorted(self._by_kind.get(kind if isinstance(kind, str) else kind.kind, {}))

    def specs(self, kind: type[S]) -> list[S]:
        """All specs of a kind, sorted by name."""
        return [spec for _, (spec, _) in sorted(self._by_kind.get(kind.kind, {}).items())]  # type: ignore[misc]

    def get(self, kind: type[S], name: str) -> S:
        """The spec of that name (for architectures: or alias). Raises UnknownName with the nearest ones."""
        names = self._by_kind.get(kind.kind, {})
        found = names.get(name)
        if found is None and kind is Architecture:
            found = names.get(self._aliases.get(name, ""))
        if found is None:
            known = [*names, *self._aliases] if kind is Architecture else list(names)
            raise UnknownName(kind.kind, name, known)
        return found[0]  # type: ignore[return-value]

    def owner(self, kind: type[Spec] | str, name: str) -> Plugin:
        return self._by_kind[kind if isinstance(kind, str) else kind.kind][name][1]

    def architectures(self, pattern: str = "", task: str = "") -> Iterator[Architecture]:
        """Architectures whose name or alias matches a shell pattern (or contains the word), sorted."""
        wanted = pattern.lower()
        glob = wanted if any(c in wanted for c in "*?[") else f"*{wanted}*"
        for spec in self.specs(Architecture):
            if task and spec.task != task:
                continue
            if not wanted or any(fnmatch.fnmatchcase(n.lower(), glob) for n in (spec.name, *spec.aliases)):
                yield spec

    def chain(self, reads: str, writes: str) -> list[Exporter]:
        """The shortest chain of exporters from one artefact format to another, found by breadth-first search.

        Raises MissingPart where only an absent package breaks it, UnknownName where nobody writes that format.
        """
        exporters = self.specs(Exporter)
        if writes not in {e.writes for e in exporters}:
            if not exporters:
                raise MissingPart("an exporter", "pip install 'edgezoo[export]'")
            raise UnknownName("export target", writes, {e.writes for e in exporters})
        missing: Exporter | None = None
        queue: list[list[Exporter]] = [[]]
        seen = {reads}
        while queue:
            path = queue.pop(0)
            at = path[-1].writes if path else reads
            if at == writes:
                return path
            for exporter in exporters:
                if exporter.reads == at and exporter.writes not in seen:
                    if absent(exporter):
                        missing = missing or exporter
                        continue
                    seen.add(exporter.writes)
                    queue.append([*path, exporter])
        if missing is not None:
            raise missing_part(missing)
        raise UnknownName(f"way from {reads} to", writes, {e.writes for e in exporters})

    def precision(self, precision: str, reads: str, target: str = "") -> Precision:
        """The pass that turns an artefact of format ``reads`` into ``precision``, for artefacts of format ``target``
        (by default of ``reads``): the one that is meant for that alone, else one for any."""
        target = target or reads
        passes = [p for p in self.specs(Precision) if p.reads == reads and p.target in ("", target)]
        for spec in sorted(passes, key=lambda p: p.target == ""):
            if spec.precision == precision:
                return spec
        raise UnknownName(f"precision of {target}", precision, {"fp32", *(p.precision for p in passes)})

    def runtimes(self, reads: str) -> list[Runtime]:
        """Every runtime for an artefact format, best first, whether or not its packages are installed."""
        return sorted((r for r in self.specs(Runtime) if reads in r.reads), key=lambda r: -r.priority)

    # -- calling hooks -----------------------------------------------------------------------------------------

    def open_weights(self, uri: str, cache: Path) -> Path:
        """Ask the plugins for a local file of ``uri``. Raises CheckpointError where nobody knows the scheme."""
        path = self._manager.hook.zoo_open_weights(uri=uri, cache=cache)
        if path is None:
            from .errors import CheckpointError

            raise CheckpointError(f"no plugin can open weights '{uri}': give a file with --weights FILE")
        return path  # type: ignore[no-any-return]

    def verify(self, candidate: Candidate, reference: Reference, samples: Samples) -> list[Finding]:
        """The findings of every plugin's ``zoo_verify``, in the order of registration."""
        found: list[Finding] = []
        for findings in reversed(
            self._manager.hook.zoo_verify(candidate=candidate, reference=reference, samples=samples)
        ):
            found.extend(findings)
        return found


@cache
def get_registry() -> Registry:
    """The registry of this process, built on first use from the installed packages' entry points."""
    return Registry()
