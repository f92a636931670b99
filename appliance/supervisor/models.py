"""Which models are served: as configured at the start, by reloads since, and as found in the model root."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from appliance.config.batching_parameters import check_batching
from appliance.config.files import read_config_text
from appliance.config.model_config import ModelConfig, model_configs, parse_model_config
from appliance.config.model_options import ModelOptions
from appliance.config.models import ConfiguredModel, Difference, configured_models, difference, needing_restart
from appliance.config.op_libraries import check_op_libraries
from appliance.config.settings import Settings
from appliance.core.errors import Code, ConfigError, ServingError
from appliance.core.observed import Observed
from appliance.core.servable import ServableId
from appliance.lifecycle.manager import Manager
from appliance.lifecycle.release import Gate, ReleaseRules
from appliance.lifecycle.standing import Standing
from appliance.protocols import protos
from appliance.source.watcher import Source
from appliance.supervisor.controller import Controller
from appliance.supervisor.load_checks import check_signing
from appliance.supervisor.tasks import Tasks

logger = logging.getLogger(__name__)

_STAND_BY_SECONDS = 30.0  # so long TensorFlow stands by after it was last asked to judge what a form refused
_MAX_REFUSED = 100
_RELOAD_SECONDS = 60.0  # a reload by RPC answers by then, with the state of each model


def log_warnings(settings: Settings) -> None:
    """Log what in a configuration has no effect."""
    for warning in settings.warnings:
        logger.warning("%s", warning)


class Models:
    """Tells the manager which models there are, and what is seen of them on disk (it is the source's listener).

    `reread` gives the settings anew, for SIGHUP; it raises ConfigError if they cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        reread: Callable[[], Settings] | None,
        controller: Controller,
        tasks: Tasks,
    ) -> None:
        self._settings = settings
        self._options = settings.options
        self._reread = reread
        self._controller = controller
        self._manager = controller.manager
        self._tasks = tasks
        self._models: dict[str, ConfiguredModel] = {}  # those that flags, files or a reload name
        self._configs: tuple[ModelConfig, ...] | None = None  # what the config file or the last reload lists
        self._config_text: str | None = None  # of the file, when it was last applied or refused
        self._reloading = asyncio.Lock()
        self._reload_is_due = False  # a SIGHUP has come, and its reload has not begun
        self._model_options: dict[str, ModelOptions] = {}
        self._candidates: dict[str, str] = {}  # sub-folders of the root that have no version yet
        self._remarks: dict[str, str] = {}  # the last that was logged about each folder that is there
        self._refused: set[str] = set()  # sub-folders of the root whose names cannot be a model's, and that are listed
        self._told_refused: frozenset[str] = frozenset()  # all of them
        self._waiters: set[asyncio.Future[bool]] = set()
        self._source = Source(self, self._options.file_system_poll_wait_seconds)

    def options_of(self, name: str) -> ModelOptions:
        return self._model_options[name]

    def start(self, models: dict[str, ConfiguredModel]) -> None:
        """Serve `models`, and what comes into the root, from now on."""
        self._apply(models)
        if self._options.model_root:
            self._source.set_root(self._options.model_root)
        if self._options.model_config_file and self._options.model_config_file_poll_wait_seconds:
            self._tasks.start(self._poll_config_file())

    def stop(self) -> None:
        self._source.stop()

    def look(self, name: str) -> None:
        """Look at the folder of a model again soon."""
        self._source.look(name)

    def changed(self) -> None:
        """Wake those who wait for changes: the manager may have some."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(True)

    def configured(self) -> dict[str, ConfiguredModel]:
        """Return the models to start with. Raises ConfigError."""
        found, self._config_text, self._configs = first_models(self._settings)
        return found

    # -- configuration that changes while we serve -----------------------------------------------------------

    def _apply(self, models: dict[str, ConfiguredModel]) -> Difference:
        """Serve `models` from now on, instead of those that were configured before."""
        changes = difference(self._models, models)
        self._models = models
        for name in changes.removed:
            self._source.remove(name)
            self._remove(name)
            self._remarks.pop(name, None)
        for model in (*changes.added, *changes.changed):
            name, options = model.name, model.options
            self._model_options[name] = options
            was_candidate = self._candidates.pop(name, None) is not None
            if self._source.follows(name):
                self._source.remove(name)
            if name in self._manager.names() and not was_candidate:
                self._update(name, model.base_path, options, model.labels)
            else:
                self._add(name, model.base_path, options, model.labels)
            self._source.add(name, model.base_path, options.settle_seconds)
        return changes

    def _add(self, name: str, base_path: str, options: ModelOptions, labels: Mapping[str, int]) -> None:
        rules = _release_rules(options)
        self._controller.post(lambda manager, _now: manager.add_model(name, base_path, options.policy, labels, rules))

    def _update(self, name: str, base_path: str, options: ModelOptions, labels: Mapping[str, int]) -> None:
        rules = _release_rules(options)
        self._controller.post(
            lambda manager, now: manager.update_model(name, base_path, options.policy, labels, now, rules)
        )

    def _remove(self, name: str) -> None:
        self._controller.post(lambda manager, now: manager.remove_model(name, now))

    async def reload_settings(self) -> None:
        """Read the flags' files again for a SIGHUP, and take what can change while we serve.

        If a reload has yet to begin, that one is for this signal too.
        """
        if self._reread is None or self._reload_is_due:
            return
        self._reload_is_due = True
        async with self._reloading:
            self._reload_is_due = False
            try:
                settings = await asyncio.to_thread(self._reread)
                log_warnings(settings)
                of_models = [settings.of_model(name) for name in settings.models]
                await asyncio.to_thread(check_batching, settings.options, of_models)
                await asyncio.to_thread(check_op_libraries, [settings.options, *of_models])
                await asyncio.to_thread(check_signing, [settings.options, *of_models])
                path = settings.options.model_config_file
                text = None if not path else await asyncio.to_thread(_read_config_file, path)
                configs = None if text is None else await asyncio.to_thread(parse_model_config, text, path)
                models = configured_models(settings, configs)
            except ConfigError as error:
                logger.error("the configuration was not reloaded, and nothing has changed: %s", error)
                return
            late = needing_restart(self._options, settings.options)
            # What needs a restart stays as it was, so that it is told again as long as it differs.
            self._settings = Settings(
                replace(settings.options, **{name: getattr(self._options, name) for name in late}), settings.models
            )
            self._options = self._settings.options
            self._config_text, self._configs = text, configs
            changes = self._apply(models)
            self._take_root_options()
            logger.info("the configuration was reloaded: %s", changes)
            if late:
                logger.warning("these options change only when the server is started again: %s", ", ".join(late))

    def _take_root_options(self) -> None:
        """Configure anew the models that were found in the root."""
        for route in list(self._manager.routes().values()):
            name = route.name
            if name in self._models or name not in self._model_options or name not in self._manager.names():
                continue
            options = self._settings.of_model(name)
            if options != self._model_options[name]:
                self._model_options[name] = options
                self._update(name, route.base_path, options, {})

    async def _poll_config_file(self) -> None:
        """Look at the model config file now and then, and apply it if it has changed."""
        told = ""  # a file that cannot be read is complained of once, not at every look
        while True:
            await asyncio.sleep(self._options.model_config_file_poll_wait_seconds)
            path = self._options.model_config_file
            try:
                text = await asyncio.to_thread(_read_config_file, path)
                told = ""
                async with self._reloading:
                    if text == self._config_text:
                        continue
                    self._config_text = text
                    configs = await asyncio.to_thread(parse_model_config, text, path)
                    models = configured_models(self._settings, configs)
                    self._configs = configs
                    logger.info("%s was read again: %s", path, self._apply(models))
            except ConfigError as error:
                if str(error) != told:
                    logger.error("%s was not applied, and nothing has changed: %s", path, error)
                told = str(error)

    async def reload(self, params: dict[str, Any]) -> dict[str, Any]:
        """Reload by RPC: replace the list of models, wait until they are live, and return how each stands.

        `params`: "config", a serialized ModelServerConfig in base64, and "seconds", by when to answer. The answer has
        the "code" and "message" of a ReloadConfigResponse.
        """
        seconds = min(float(params["seconds"]), _RELOAD_SECONDS)
        deadline = time.monotonic() + seconds
        message = protos.ModelServerConfig.FromString(base64.b64decode(params["config"] or ""))
        try:
            async with asyncio.timeout(seconds):
                await self._reloading.acquire()
        except TimeoutError:
            raise ServingError(Code.UNAVAILABLE, "another reload is still being applied", "try again") from None
        try:
            if message.WhichOneof("config") is None:
                raise ConfigError("the request has no config", "send a model_config_list; an empty one unloads all")
            configs = model_configs(message, "the reload request")
            models = configured_models(self._settings, configs)
            self._configs = configs
            changes = self._apply(models)
        except ConfigError as error:
            logger.error("a reload by RPC was refused, and nothing has changed: %s", error)
            return {"code": int(Code.INVALID_ARGUMENT), "message": f"{error}; nothing has changed"}
        finally:
            self._reloading.release()
        logger.info("reloaded by RPC: %s", changes)
        return await self._standing_of([config.name for config in configs], deadline)

    async def _standing_of(self, names: list[str], deadline: float) -> dict[str, Any]:
        """Wait until each model is live or will not be, or the deadline (monotonic); return what a reload answers."""
        while True:
            revision = self._manager.revision
            there = set(self._manager.names())
            standings = {
                name: self._manager.standing(name) if name in there else (Standing.FAILED, "it was removed meanwhile")
                for name in names
            }
            pending = [name for name, (standing, _) in standings.items() if standing is Standing.PENDING]
            seconds = deadline - time.monotonic()
            if not pending or seconds <= 0:
                break
            await self.changed_since(revision, seconds)
        wrong = {name: f"{s.value}: {why}" for name, (s, why) in standings.items() if s is not Standing.LIVE}
        if not wrong:
            return {"code": int(Code.OK), "message": ""}
        listed = "; ".join(f"model {name} is {text}" for name, text in wrong.items())
        live = ", ".join(name for name in names if name not in wrong) or "none"
        code = Code.DEADLINE_EXCEEDED if pending else Code.FAILED_PRECONDITION
        return {
            "code": int(code),
            "message": f"{len(wrong)} of {len(names)} models are not live. {listed}. Live: {live}",
        }

    async def stand_by(self, servable: ServableId, seconds: float) -> str:
        """Have the version's own model served, beside its form if it has one; return its socket's path.

        Raises ServingError (UNAVAILABLE) if that does not succeed within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            revision = self._manager.revision
            self._controller.post(lambda manager, now: manager.stand_by(servable, now + _STAND_BY_SECONDS, now))
            now = time.monotonic()
            path = self._manager.own_socket(servable)
            if path:
                return path
            if path is None or now >= deadline:
                raise ServingError(Code.UNAVAILABLE, f"{servable}: TensorFlow does not stand by for it")
            await self.changed_since(revision, deadline - now)

    async def changed_since(self, revision: int, seconds: float) -> None:
        """Wait until the manager has something newer than `revision`, for `seconds` at most."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            if self._manager.revision == revision:
                await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._waiters.discard(waiter)

    # -- the source's listener -------------------------------------------------------------------------------

    def loaded_versions(self, name: str) -> frozenset[int]:
        return self._manager.loaded_versions(name)

    def model_appeared(self, name: str, base_path: str) -> float:
        options = self._settings.of_model(name)
        self._model_options[name] = options
        self._candidates[name] = base_path
        return options.settle_seconds

    def model_vanished(self, name: str) -> None:
        self._remarks.pop(name, None)
        if self._candidates.pop(name, None) is None:
            logger.info("model %s: its folder is gone", name)
            self._remove(name)

    def versions_observed(self, name: str, observed: dict[int, Observed], remark: str, holds_model: bool) -> None:
        if name in self._candidates:
            if not observed and not holds_model:
                return
            base_path = self._candidates.pop(name)
            logger.info("model %s: found at %s", name, base_path)
            options = self._model_options[name]
            self._add(name, base_path, options, {})
        self._log_remark(name, remark)
        self._controller.post(lambda manager, now: manager.observe(name, observed, remark, now))

    def base_path_lost(self, name: str, reason: str) -> None:
        if name not in self._candidates:
            self._log_remark(name, reason)
            self._controller.post(lambda manager, _now: manager.base_path_lost(name, reason))

    def models_refused(self, refused: Mapping[str, str]) -> None:
        for name in self._told_refused - refused.keys():
            self._remarks.pop(name, None)
        self._told_refused = frozenset(refused)
        for name in self._refused - refused.keys():
            self._refused.discard(name)
            if name not in self._models:
                self._remove(name)
        for name, reason in refused.items():
            self._log_remark(name, reason)
            if name not in self._refused and name not in self._manager.names() and len(self._refused) < _MAX_REFUSED:
                self._refused.add(name)
                base_path = f"{self._options.model_root}/{name}"
                self._controller.post(partial(_refuse, name, base_path, reason))

    def _log_remark(self, name: str, remark: str) -> None:
        if remark and remark != self._remarks.get(name):
            logger.warning("model %s: %s", name, remark)
        self._remarks[name] = remark


def _refuse(name: str, base_path: str, reason: str, manager: Manager, _now: float) -> None:
    manager.refuse_model(name, base_path, reason)


def first_models(
    settings: Settings,
) -> tuple[dict[str, ConfiguredModel], str | None, tuple[ModelConfig, ...] | None]:
    """Return the models that a server starts with, and the model_config_file's text and entries if there is one.

    Raises ConfigError if it does not start.
    """
    options = settings.options
    text, configs = None, None
    if options.model_base_path and options.model_config_file:
        raise ConfigError("both model_base_path and model_config_file are set", "set one, or add the model to the file")
    if options.rest_api_port < 0 and options.port < 0 and not options.grpc_socket_path:
        raise ConfigError("neither REST nor gRPC is served", "set rest_api_port, port or grpc_socket_path")
    if options.model_config_file:
        text = _read_config_file(options.model_config_file)
        configs = parse_model_config(text, options.model_config_file)
    found = configured_models(settings, configs)
    if not found and not options.model_root and not options.model_config_file:
        raise ConfigError(
            "no models are configured",
            "give --model_root DIR, --model_base_path DIR, --model_config_file FILE, or [models.NAME] in --config",
        )
    return found, text, configs


def _release_rules(options: ModelOptions) -> ReleaseRules:
    return ReleaseRules(
        Gate(options.release_gate),
        options.signature_changes == "refuse",
        options.incomplete_after_seconds,
        options.crash_window_seconds,
    )


def _read_config_file(path: str) -> str:
    return read_config_text(path, "the model_config_file")
