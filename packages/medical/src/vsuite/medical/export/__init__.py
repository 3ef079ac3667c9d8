"""Exports: a MONAI bundle, ONNX, TorchScript and the authors' own layout, each with the contract that a deployment needs."""

from vsuite.medical.export.bundle import BundleFacts, export_bundle
from vsuite.medical.export.contract import Contract, contract_of
from vsuite.medical.export.onnx import Exported, contract_path, export_onnx, export_published, export_torchscript

__all__ = [
    "BundleFacts",
    "Contract",
    "Exported",
    "contract_of",
    "contract_path",
    "export_bundle",
    "export_onnx",
    "export_published",
    "export_torchscript",
]
