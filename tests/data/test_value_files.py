"""Data that are no images: tensors of any shape and type, and files of them."""

from __future__ import annotations

import gzip
import io
import zipfile

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from torch.utils.data import DataLoader, TensorDataset

from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.data.preparation import Preparation
from pvae.data.read import read
from pvae.data.sources import read_values

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 2)])
def test_values_become_float32_and_nothing_else(dtype, shape):
    data = (10 * torch.rand(6, *shape)).to(dtype)
    found = Dataset("mine", data[:4], data[4:])
    preparation = Preparation()
    assert not found.is_images
    assert found.datum_shape == shape
    assert torch.equal(preparation.x(preparation.prepared(found.train, "train")), data[:4].float())
    assert found.record().sha256 != Dataset("mine", data[:4].double() + 1, data[4:].double() + 1).record().sha256


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_files_of_arrays(tmp_path):
    rows = RNG.random((40, 5))
    np.save(tmp_path / "rows.npy", rows)
    save(
        tmp_path / "split.npz",
        train=rows[:30],
        test=rows[30:],
        train_labels=np.arange(30) % 3,
        test_labels=np.arange(10) % 3,
    )
    save(tmp_path / "named.npz", X=RNG.integers(0, 9, (40, 6, 2), dtype=np.uint16), y=np.array(["a", "b"] * 20))
    one = read(f"array:{tmp_path / 'rows.npy'}")
    assert (len(one.train), len(one.test), one.datum_shape) == (36, 4, (5,))
    order = [int(name.removeprefix("rows-")) for name in [*one.names["train"], *one.names["test"]]]
    assert np.array_equal(torch.cat([one.train, one.test]).numpy(), rows[order])
    two = read(f"array:{tmp_path / 'split.npz'}")
    assert np.array_equal(two.test.numpy(), rows[30:])
    assert two.test_labels.tolist() == [row % 3 for row in range(10)]
    np.save(tmp_path / "swapped.npy", rows.astype(">f8"))  # as in FITS files
    assert torch.equal(read(f"array:{tmp_path / 'swapped.npy'}").train, one.train)
    save(tmp_path / "own.npz", train=rows[:30], valid=rows[30:])
    own = read(f"array:{tmp_path / 'own.npz'}")
    assert [len(own.names[split]) for split in ("train", "test", "valid")] == [27, 3, 10]
    three = read(f"array:{tmp_path / 'named.npz'}")
    assert (three.datum_shape, three.label_names) == ((6, 2), ("a", "b"))


def test_arrays_in_an_hdf5_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    rows = RNG.random((40, 5))
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["X"], file["y"] = rows, ["a", "b", "c", "a"] * 10
    data = read(f"array:{tmp_path / 't.h5'}")
    assert data.datum_shape == (5,)
    assert data.label_names == ("a", "b", "c")
    (tmp_path / "t.h5").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match="damaged"):
        read(f"array:{tmp_path / 't.h5'}")


@pytest.mark.parametrize(
    ("name", "package"), [("t.parquet", "pyarrow"), ("t.xlsx", "openpyxl"), ("t.h5", "h5py"), ("t.h5ad", "anndata")]
)
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setattr("pvae.data.sources.find_spec", lambda name: None)
    (tmp_path / name).write_bytes(b"any")
    with pytest.raises(InputError, match=f"{package}.*pip install"):
        read_values(tmp_path / name)


def test_arrays_that_are_not_read_are_named_and_names_of_data_are_taken(tmp_path):
    rows, cells = RNG.random((30, 2)), np.array([f"cell {row}" for row in range(30)])
    save(tmp_path / "t.npz", X=rows, genes=np.array(["g1", "g2"]), batch=np.zeros(30), cells=cells)
    data = read(f"array:{tmp_path / 't.npz'}")
    assert all(name in data.note for name in ("genes", "batch"))
    assert "cells" not in data.note
    order = [int(name.removeprefix("cell ")) for name in [*data.names["train"], *data.names["test"]]]
    assert np.array_equal(torch.cat([data.train, data.test]).numpy(), rows[order])
    save(tmp_path / "t.npz", X=rows, names=[f"n{row}" for row in range(30)], cells=cells)
    values = read_values(tmp_path / "t.npz")
    assert values.names["train"][3] == "n3"
    assert "not read: cells" in values.schema.note


def test_sparse_matrices(tmp_path):
    dense = RNG.poisson(0.3, (12, 5))
    sparse = scipy.sparse.csr_matrix(dense)
    scipy.sparse.save_npz(tmp_path / "t.npz", sparse)
    scipy.io.mmwrite(tmp_path / "t.mtx", sparse)
    (tmp_path / "z.mtx.gz").write_bytes(gzip.compress((tmp_path / "t.mtx").read_bytes()))
    for name in ("t.npz", "t.mtx", "z.mtx.gz"):
        assert np.array_equal(read_values(tmp_path / name).x["train"], dense), name


def test_cells_of_anndata(tmp_path):
    anndata = pytest.importorskip("anndata")
    dense = RNG.poisson(0.3, (12, 5)).astype(np.float32)
    cells = anndata.AnnData(scipy.sparse.csr_matrix(dense))
    cells.obsm["umap"], cells.uns["note"], cells.var["mean"] = dense[:, :2], "x", dense.mean(0)
    cells.obs_names, cells.obs["batch"] = [f"cell {row}" for row in range(12)], ["a", "b"] * 6
    anndata.settings.allow_write_nullable_strings = True
    cells.write_h5ad(tmp_path / "t.h5ad")
    values = read_values(tmp_path / "t.h5ad")
    assert np.array_equal(values.x["train"], dense)
    assert values.names["train"] == [*cells.obs_names]
    assert all(name in values.schema.note for name in ("obs/batch", "obsm/umap", "uns/note", "var/mean"))


def test_arrays_that_cannot_be_data_are_refused_in_their_own_words(tmp_path):
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "large.npz", "w") as archive:
        archive.writestr("X.npy", header.getvalue())
    save(tmp_path / "y.npz", X=np.zeros((100, 2)), y=RNG.normal(size=100))
    np.save(tmp_path / "long.npy", np.zeros((4, 2), np.longdouble))
    np.save(tmp_path / "text.npy", np.array([["a", "b"]] * 4))
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    save(tmp_path / "two.npz", first=np.zeros((4, 2)), second=np.zeros((4, 2)))
    save(tmp_path / "labels.npz", X=np.zeros((4, 2)), y=np.zeros(3))
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY")
    says = {"y.npz": "no classes", "long.npy": "64 bits", "large.npz": "larger than the memory"}
    for name in (*says, "text.npy", "objects.npy", "two.npz", "labels.npz", "damaged.npy", "missing.npy", "t.txt"):
        with pytest.raises(InputError, match=says.get(name, "")):
            read(f"array:{tmp_path / name}")


def test_datasets_and_loaders_of_torch():
    x, y = torch.randn(40, 3), torch.arange(40) % 4
    one = Dataset.from_torch("mine", TensorDataset(x, y))
    assert (len(one.train), len(one.test), one.label_names) == (36, 4, ("0", "1", "2", "3"))
    together = torch.cat([one.train, one.test])
    rows = [int((x == row).all(1).nonzero()) for row in together]
    assert sorted(rows) == list(range(40))
    assert torch.equal(torch.cat([one.train_labels, one.test_labels]), y[rows])
    loader = DataLoader(TensorDataset(x), batch_size=7, drop_last=True)
    two = Dataset.from_torch("mine", loader, TensorDataset(x[:9]))
    assert torch.equal(two.train, x[:35])
    assert torch.equal(two.test, x[:9])
    assert "5 train data are left out" in two.note


class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return "text"


class Fails(Texts):
    def __getitem__(self, index):
        raise KeyError("no such row")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Texts(), "yields str"),
        (Fails(), "no such row"),
        (TensorDataset(torch.zeros(0, 2)), "holds no data"),
    ],
)
def test_sources_of_something_else_are_refused(source, words):
    with pytest.raises(InputError) as refused:
        Dataset.from_torch("mine", source)
    assert words in str(refused.value)
