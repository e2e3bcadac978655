"""The yield workbooks and T5Chem's archive in their formats; and, where they are at hand, the public files themselves."""

import io
import os
import tarfile

import openpyxl
import pytest

from companion.reactiont5 import data
from companion.reactiont5.chemistry import canonical, components

HEAD = ["Ligand", "Additive", "Base", "Aryl halide", "Output"]
LINE = ["CP(C)C", "c1conc1", "CN(C)C", "Clc1ccncc1", 42.5]


def workbook(path, *lines, sheet="Test1"):
    book = openpyxl.Workbook()
    page = book.active
    page.title = sheet
    for line in lines:
        page.append(line)
    book.save(path)
    return path


def test_a_coupling_of_the_workbook(tmp_path):
    path = workbook(tmp_path / "a.xlsx", HEAD, LINE)
    (row,) = data.read_buchwald_hartwig("Test1", path).train
    assert components(row.reactant) == sorted([canonical(data.TOLUIDINE), "Clc1ccncc1"])
    assert row.product == canonical("Cc1ccc(Nc2ccncc2)cc1")
    assert set(components(row.reagent)) == {canonical(data.PALLADACYCLE), "CP(C)C", "c1cnoc1", "CN(C)C"}
    assert row.yield_percent == 42.5
    assert data.read_buchwald_hartwig("Test1", path).train_factors == [tuple(LINE[:4])]


@pytest.mark.parametrize(("lines", "sheet", "said"), [
    ([HEAD, LINE], "Plates1", "'Plates1' is no split"),
    ([HEAD[1:], LINE[1:]], "Test1", "column 'Ligand' is missing"),
    ([HEAD, [*LINE[:4], 120.0]], "Test1", "yield 120 is no number from 0 to 100"),
    ([HEAD, [*LINE[:4], None]], "Test1", "yield None is no number"),
    ([HEAD, [*LINE[:3], "CCO", 12.0]], "Test1", "aryl halide 'CCO' gives 0 amination products"),
])  # fmt: skip
def test_other_workbooks_are_refused(tmp_path, lines, sheet, said):
    path = workbook(tmp_path / f"{abs(hash(said))}.xlsx", *lines)
    with pytest.raises(ValueError, match=said):
        data.read_buchwald_hartwig(sheet, path)


def test_suzuki_workbook(tmp_path):
    names = ["Reactant_1_Short_Hand", "Reactant_2_Name", "Ligand_Short_Hand", "Reagent_1_Short_Hand",
             "Solvent_1_Short_Hand", "Product_Yield_PCT_Area_UV"]  # fmt: skip
    path = workbook(tmp_path / "s.xlsx", names, ["1a", "2a", None, "NaOH", "MeCN", 71.0], sheet="Sheet1")
    assert data.read_suzuki_factors(path) == ([("1a", "2a", "none", "NaOH", "MeCN")], [71.0])
    path = workbook(tmp_path / "t.xlsx", names[1:], ["2a", None, "NaOH", "MeCN", 71.0], sheet="Sheet1")
    with pytest.raises(ValueError, match="'Reactant_1_Short_Hand' is missing"):
        data.read_suzuki_factors(path)


def test_t5chem_archive(tmp_path):
    files = {"product/test.source": "CCBr.N>>", "product/test.target": "CCN",
             "reactants/test.source": "CCN", "reactants/test.target": "CCBr.N",
             "regression/test.source": "CCBr.N>[Pd].O>CCN", "regression/test.target": "0.5"}  # fmt: skip
    path = tmp_path / "t.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"data/sample/{name}")
            info.size = len(text) + 1
            archive.addfile(info, io.BytesIO(text.encode() + b"\n"))
    for task in ("product", "reactants", "regression"):
        (row,), _ = data.read_t5chem(task, "test", path)
        assert (row.reactant, row.product) == ("CCBr.N", "CCN")
    assert (row.reagent, row.yield_percent) == ("O.[Pd]", 0.5)  # its yields are percent
    with pytest.raises(ValueError, match="choose product, reactants or regression"):
        data.read_t5chem("reagents", "test", path)


def test_mapped_csv(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("class,id,rxn_smiles\n1,US1,[CH3:1][Br:2].[NH3:3]>>[CH3:1][NH2:3]\n")
    (row,), report = data.read_uspto_50k_mapped(path)
    assert (row.reactant, row.product) == ("CBr.N", "CN")
    assert any("atom maps" in reason for reason in report.counts)


DATA = os.environ.get("COMPANION_TEST_DATA", "")  # what COMPANION_DATA was before the tests hid it
needs_data = pytest.mark.skipif(
    not os.path.isdir(f"{DATA}/reactions"), reason="COMPANION_DATA names no folder with reactions"
)


@pytest.fixture
def public(monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", DATA)


@needs_data
def test_public_workbook_has_the_published_sizes(public):
    for sheet, (train, test) in {"FullCV_01": (2767, 1188), "Test1": (3057, 898)}.items():
        split = data.read_buchwald_hartwig(sheet)
        assert (len(split.train), len(split.test)) == (train, test)
    assert len(set(split.train_factors + split.test_factors)) == 3955


@needs_data
@pytest.mark.parametrize("read", [
    lambda: data.read_uspto_mit("test", most=40), lambda: data.read_uspto_mit("valid", most=40),
    lambda: data.read_uspto_15k("valid", most=40), lambda: data.read_uspto_50k("train", most=40),
    lambda: data.read_uspto_50k_mapped(most=40), lambda: data.read_t5chem("product", "val", most=40),
    lambda: data.read_t5chem("reactants", "val", most=40), lambda: data.read_t5chem("regression", "test", most=40),
    lambda: data.read_ord_csv(task="yield"),
], ids=["mit test", "mit valid", "15k", "50k", "50k mapped", "t5chem product", "t5chem reactants", "t5chem yields", "ord"])  # fmt: skip
def test_public_files_are_read_in_their_own_formats(public, read):
    kept, report = read()
    assert len(kept) > 0.8 * report.read
    assert all(canonical(r.product) == r.product and r.reactant for r in kept)
