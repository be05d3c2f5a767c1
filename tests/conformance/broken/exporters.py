"""Exporters with one fault each; without it all of them would be the first-party mask file."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polyprune_core import ExportReport, LegalShapes, LoadedModel, ModelLayout, PrunedModel, export_report
from polyprune_plugins.exporters.masks import Masks


@dataclass(frozen=True)
class NoiseInTheWeights(Masks):
    """Stands for an exporter that rounds its weights without saying so."""

    def load(self, path: Path, **how: Any) -> LoadedModel:
        loaded = super().load(path, **how)
        for parameter in loaded.model.parameters():
            parameter.data = parameter.data.mul(1.001)
        return loaded


@dataclass(frozen=True)
class ReadsNothingBack(Masks):
    def load(self, path: Path, **how: Any) -> Any:
        return super().load(path, **how).model


@dataclass(frozen=True)
class NoShapes(Masks):
    def legal_shapes(self, layout: ModelLayout) -> Any:
        return {"channel": 64}


@dataclass(frozen=True)
class MultiplesOfZero(Masks):
    def legal_shapes(self, layout: ModelLayout) -> LegalShapes:
        return LegalShapes(multiple_of={"channel": 0})


@dataclass(frozen=True)
class LosesTheRepair(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        return super().export(dataclasses.replace(pruned, updates={}), out_dir)


@dataclass(frozen=True)
class ReloadNamesNoFolder(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        report = super().export(pruned, out_dir)
        return dataclasses.replace(report, reload=report.reload.replace("DIR", "'folder'"))


@dataclass(frozen=True)
class ReloadDoesNotRun(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        report = super().export(pruned, out_dir)
        return dataclasses.replace(report, reload=report.reload.replace("from pathlib import Path\n", ""))


@dataclass(frozen=True)
class ReloadsTheDenseModel(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        report = super().export(pruned, out_dir)
        return dataclasses.replace(report, reload=report.reload + "model = load_model(masks.base_name).model\n")


@dataclass(frozen=True)
class LosesEmptiedSublayers(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        emptied = {axis.split(".")[1] for axis, keep in pruned.axis_keep().items() if not keep.any()}
        if len(emptied) > 1:
            raise ValueError("cannot reshape tensor of 0 elements")
        return super().export(pruned, out_dir)


@dataclass(frozen=True)
class LosesEmptiedLayers(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        emptied = [axis.split(".")[1] for axis, keep in pruned.axis_keep().items() if not keep.any()]
        if len(emptied) > len(set(emptied)):
            raise ValueError("layer 1 has no weights")
        return super().export(pruned, out_dir)


@dataclass(frozen=True)
class CountsTheDenseModel(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        report = super().export(pruned, out_dir)
        return dataclasses.replace(report, parameters=pruned.layout.total_parameters)


@dataclass(frozen=True)
class WritesBeside(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        (out_dir.parent / "export.log").write_text("done")
        return super().export(pruned, out_dir)


@dataclass(frozen=True)
class WritesInTheCurrentFolder(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        Path("cache").mkdir()
        return super().export(pruned, out_dir)


@dataclass(frozen=True)
class EditsTheDenseModelsFiles(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        card = Path(pruned.base.name) / "config.json"
        card.write_text(card.read_text() + "\n")
        return super().export(pruned, out_dir)


@dataclass(frozen=True)
class FalseHash(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        report = super().export(pruned, out_dir)
        return dataclasses.replace(report, files={**report.files, "masks.json": "0" * 64})


@dataclass(frozen=True)
class UnlistedFile(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        report = super().export(pruned, out_dir)
        (out_dir / "notes").mkdir()
        (out_dir / "notes" / "README.md").write_text("read me")
        return report


@dataclass(frozen=True)
class NamesTheUsersFolder(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        report = super().export(pruned, out_dir)
        (out_dir / "origin.txt").write_text(f"made from {pruned.base.path}")
        return export_report(out_dir, report.format, report.reload, report.parameters)


@dataclass(frozen=True)
class WritesTheRecipeAsItIs(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        report = super().export(pruned, out_dir)
        (out_dir / "recipe.json").write_text(json.dumps(pruned.recipe))
        return export_report(out_dir, report.format, report.reload, report.parameters)


@dataclass(frozen=True)
class PrunesTheDenseModelItself(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        report = super().export(pruned, out_dir)
        with torch.no_grad():
            pruned.base.model.get_parameter("model.layers.0.mlp.up_proj.weight")[0] = 0
        return report


@dataclass(frozen=True)
class LeavesTheCacheOn(Masks):
    def load(self, path: Path, **how: Any) -> LoadedModel:
        loaded = super().load(path, **how)
        loaded.model.config.use_cache = True
        return loaded


@dataclass(frozen=True)
class IgnoresTheNumberFormat(Masks):
    def load(self, path: Path, **how: Any) -> LoadedModel:
        return super().load(path, **how | {"dtype": "float32"})


@dataclass(frozen=True)
class DrawsAName(Masks):
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        (out_dir / f"{random.getrandbits(64):x}.txt").write_text("an identity")
        return super().export(pruned, out_dir)


@dataclass(frozen=True)
class CannotLoad:
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        return Masks().export(pruned, out_dir)


FAULTS = {
    NoiseInTheWeights: "reloaded_model_equals_the_compact_one",
    ReadsNothingBack: "what_is_written_can_be_read_back",
    NoShapes: "legal_shapes_are_told",
    MultiplesOfZero: "legal_shapes_are_told",
    LosesTheRepair: "repaired_weights_survive",
    ReloadNamesNoFolder: "reload_code_loads_the_model",
    ReloadDoesNotRun: "reload_code_loads_the_model",
    ReloadsTheDenseModel: "reload_code_loads_the_model",
    LosesEmptiedSublayers: "emptied_sublayers_survive",
    LosesEmptiedLayers: "emptied_layer_survives",
    CountsTheDenseModel: "parameters_are_those_that_are_left",
    WritesBeside: "only_its_folder_is_written",
    WritesInTheCurrentFolder: "only_its_folder_is_written",
    EditsTheDenseModelsFiles: "only_its_folder_is_written",
    FalseHash: "report_lists_every_file_with_its_hash",
    UnlistedFile: "report_lists_every_file_with_its_hash",
    NamesTheUsersFolder: "no_file_holds_a_path_of_this_machine",
    WritesTheRecipeAsItIs: "no_file_holds_a_path_of_this_machine",
    PrunesTheDenseModelItself: "dense_model_is_left_alone",
    LeavesTheCacheOn: "reloaded_model_is_ready_to_run",
    IgnoresTheNumberFormat: "reloaded_model_is_ready_to_run",
    DrawsAName: "exporting_uses_no_global_randomness",
    CannotLoad: "builds_with_its_defaults",
}
