"""Canonical SMILES, filters, metrics, leakage, readers on small files in the real formats, and the world's rule."""

import io
import math
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from companion.reactiont5 import baselines, data, leakage, metrics, world
from companion.reactiont5.chemistry import Row, canonical, clean, merge, strip_maps, why_not


def test_canonical_and_why_not():
    assert canonical("OCC") == canonical("C(O)C") == "CCO"
    assert canonical("") is canonical("C1CC") is canonical("xyz") is None
    assert canonical("C[C@H](N)O") != canonical("C[C@@H](N)O")
    assert "syntax" in why_not("C(C")
    assert "valence" in why_not("C(C)(C)(C)(C)C").lower()
    assert strip_maps("[CH3:1][OH:2]") == ("[CH3][OH]", 2)
    assert merge("A", "", None, " B ") == "A.B"


@pytest.mark.parametrize(("mapped", "plain", "form"), [
    ("[CH3:1][Mg+:2]", "C[Mg+]", "C[Mg+]"),
    ("[CH2:1]([Li:2])[CH2:3][CH2:4][CH3:5]", "[Li]CCCC", "[Li]CCCC"),
    ("[Cu:1][I:2]", "I[Cu]", "[Cu]I"),
    ("[c:1]1([Zn+:9])[cH:2][cH:3][nH:4][cH:6]1", "[Zn+]c1cc[nH]c1", "[Zn+]c1cc[nH]c1"),
    ("[O:1]=[N:2][O:3]", "O=N[O]", "[O]N=O"),
    ("[CH3].[CH3][Mg+]", "C[Mg+].[CH3]", "[CH3].C[Mg+]"),
])  # fmt: skip
def test_atoms_beside_a_metal_need_no_brackets_and_radicals_keep_theirs(mapped, plain, form):
    assert canonical(strip_maps(mapped)[0]) == canonical(plain) == canonical(form) == form


@pytest.mark.parametrize(
    "text", [data.PALLADACYCLE, "C[Mg+]", "[CH3:1][Li:2]", "CC(=O)O[Pd]OC(C)=O", "[O]N=O"]
)
def test_canonical_text_stays_as_it_is(text):
    text = strip_maps(text)[0]
    once = canonical(text)
    assert canonical(once) == once
    assert canonical(f"{text}.O") == canonical(f"{once}.O")  # in a mixture, too


def test_clean_counts_everything_it_drops_or_changes():
    rows = [
        {"REACTANT": "OCC.[Na+].[Cl-]", "PRODUCT": "CC=O", "YIELD": "50"},
        {"REACTANT": "CCO.[Na+].[Cl-]", "PRODUCT": "O=CC", "YIELD": "50"},  # the same, written differently
        {"REACTANT": "C1CC", "PRODUCT": "C", "YIELD": "10"},
        {"REACTANT": "", "PRODUCT": "C", "YIELD": "10"},
        {"REACTANT": "C", "PRODUCT": "CO", "YIELD": "140"},
        {"REACTANT": "C", "PRODUCT": "CO", "YIELD": ""},
        {"REACTANT": "[CH3:1][OH:2]", "PRODUCT": "C", "REAGENT": None, "YIELD": "99"},
    ]
    kept, report = clean(rows, need=("REACTANT", "PRODUCT", "YIELD"))
    assert [r.reactant for r in kept] == ["CCO.[Cl-].[Na+]", "CO"]
    assert report.read == 7
    assert report.kept == 2
    assert dict(report.counts) == {
        "salts or charged parts among the reactants (kept)": 2, "exact duplicate": 1, "unreadable REACTANT": 1,
        "empty REACTANT": 1, "yield outside 0 to 100": 1, "no yield": 1, "roles with atom maps (maps removed)": 1,
    }  # fmt: skip
    assert "row 3" in str(report)
    assert "C1CC" in str(report)


def test_shares_and_percents():
    rows = [
        {"REACTANT": "C", "PRODUCT": "CO", "YIELD": "0.5"},
        {"REACTANT": "CC", "PRODUCT": "CCO", "YIELD": "0.9"},
    ]
    assert [r.yield_percent for r in clean(rows)[0]] == [50, 90]
    assert [r.yield_percent for r in clean(rows, share=False)[0]] == [0.5, 0.9]
    assert math.isnan(clean([{"REACTANT": "C", "PRODUCT": "CO"}])[0][0].yield_percent)


def test_conditions_leave_the_solvent_out_for_yields():
    row = Row("C", "CO", reagent="O", catalyst="[Pd]", solvent="CCO")
    assert set(row.conditions().split(".")) == {"O", "[Pd]", "CCO"}
    assert set(row.conditions("yield").split(".")) == {"O", "[Pd]"}


# --- metrics ------------------------------------------------------------------------------------------


def test_exact_match_is_on_canonical_smiles_stereo_included():
    found = metrics.accuracy(
        ["CCO", "C[C@H](N)O"], [["OCC", "C"], ["C[C@@H](N)O", "C[C@H](N)O"]], tops=(1, 2)
    )
    assert found.top == {1: 0.5, 2: 1.0}
    assert found.invalid == 0


def test_nothing_equals_nothing_only_as_published():
    mine = metrics.accuracy(["C1CC"], [["also bad"]], tops=(1,))
    theirs = metrics.accuracy(["C1CC"], [["also bad"]], tops=(1,), as_published=True)
    assert mine.top[1] == 0.0
    assert mine.bad_targets == 1
    assert mine.invalid == 1.0
    assert theirs.top[1] == 1.0


def test_percent_shortcut_only_as_published():
    ring = "C%10CCCCC%10"
    assert metrics.accuracy([ring], [["C1CCCCC1"]], tops=(1,)).top[1] == 1.0
    assert metrics.accuracy([ring], [["C1CCCCC1"]], tops=(1,), as_published=True).top[1] == 0.0


def test_bad_lists_are_refused():
    with pytest.raises(ValueError, match="2 targets and 1"):
        metrics.accuracy(["C", "C"], [["C"]])


def test_r2_is_not_squared_pearson():
    truth = [10.0, 20.0, 60.0, 90.0]
    shifted = [t - 40 for t in truth]
    assert metrics.squared_pearson(truth, shifted) == pytest.approx(1)
    assert metrics.r2(truth, shifted) < 0
    assert metrics.r2(truth, [45.0] * 4) == pytest.approx(0)
    assert metrics.r2(truth, truth) == 1
    from sklearn.metrics import r2_score

    assert metrics.r2(truth, shifted) == pytest.approx(r2_score(truth, shifted))
    with pytest.raises(ValueError, match="same length"):
        metrics.yield_errors([1.0], [1.0])


# --- leakage ------------------------------------------------------------------------------------------


def test_the_published_key_lets_through_what_the_wider_keys_find():
    test = [Row("CC.N", "CCN", reagent="O")]
    before = [Row("N.CC", "CCN", reagent="CO"), Row("CCl", "CCN"), Row("C", "CO")]
    found = {o.key: o.found for o in leakage.leakage_report(before, test)}
    assert found == {"reaction": 0, "reactants and product": 1, "pool and product": 0, "product": 1}
    kept, gone = leakage.without(before, test)
    assert (len(kept), gone) == (2, 1)
    pool = leakage.leakage_report([Row("CC.N.O", "CCN")], test)
    assert {o.key: o.found for o in pool}["pool and product"] == 1
    assert leakage.duplicates([before[0], Row("CC.N", "CCN")]) == 1
    with pytest.raises(ValueError, match="both sides"):
        leakage.leakage_report([], test)


# --- readers ------------------------------------------------------------------------------------------


def test_roles_come_from_atom_maps():
    own, other = data.split_roles("[CH3:1][Br:2].[NH3:3].[Na+:9]", "[CH3:1][NH2:3]")
    assert own == "[CH3:1][Br:2].[NH3:3]"
    assert other == "[Na+:9]"


def test_uspto_mit_archive(tmp_path):
    text = "[CH3:1][Br:2].[NH3:3].[Na+:9]>>[CH3:1][NH2:3] 1-3\nbroken\n[CH3:1][OH:2]>>CO 1\n"
    path = tmp_path / "valid.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("valid.txt")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))
    kept, report = data.read_uspto_mit("valid", path)
    assert (kept[0].reactant, kept[0].reagent, kept[0].product) == ("CBr.N", "[Na+]", "CN")
    assert report.counts["unreadable REACTANT"] == 1
    assert report.counts["product without atom maps: all molecules count as REACTANT"] == 1
    with pytest.raises(ValueError, match="'dev'"):
        data.read_uspto_mit("dev", path)
    with pytest.raises(ValueError, match=r"valid\.txt"):
        data.read_uspto_mit("test", path)


def test_uspto_15k_archive(tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/test.txt", "[CH3:1][OH:2].[OH2:3]>>CO 1;;\n")
    (row,), _ = data.read_uspto_15k("test", path)
    assert (row.reactant, row.reagent, row.product) == ("CO.O", "", "CO")


def test_uspto_50k_line(tmp_path):
    path = tmp_path / "test.smi"
    path.write_text("CCN >> CCBr.N\n")
    (row,), _ = data.read_uspto_50k("test", path)
    assert (row.reactant, row.product) == ("CCBr.N", "CCN")


def test_ord_table_with_merged_catalyst(tmp_path):
    path = tmp_path / "ord.csv"
    path.write_text(
        "REACTANT,PRODUCT,REAGENT,SOLVENT,CATALYST,YIELD\nCBr.N,CN,[Pd].O,CO,[Pd],0.5\nCBr,C,O,,[Cu],0.25\n"
    )
    kept, report = data.read_ord_csv(path)
    assert [r.catalyst for r in kept] == ["", "[Cu]"]
    assert [r.yield_percent for r in kept] == [50, 25]
    assert kept[0].conditions().split(".").count("[Pd]") == 1
    assert report.counts["catalyst already merged into REAGENT"] == 1
    path.write_text("A,B\n1,2\n")
    with pytest.raises(ValueError, match="column PRODUCT is missing"):
        data.read_ord_csv(path)


def test_dative_bonds_are_not_reaction_arrows():
    assert data.ARROW.split("CC>N->[Pd].O>CN") == ["CC", "N->[Pd].O", "CN"]


def test_amination_template():
    assert data.amination_product("FC(F)(F)c1ccc(Cl)cc1") == canonical("Cc1ccc(Nc2ccc(C(F)(F)F)cc2)cc1")
    with pytest.raises(ValueError, match="gives 0"):
        data.amination_product("CCO")


def test_one_hot_gives_unseen_levels_no_column():
    x, z = baselines.one_hot([("a", "p"), ("b", "p")], [("c", "p")])
    assert x.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert z.tolist() == [[0, 0, 1]]
    assert baselines.fingerprints([Row("CC", "CCO")]).shape == (1, 900)


def test_molecules_that_take_part_are_codes_without_an_order():
    x, z = baselines.present([("a", "b"), ("b", "c")], [("c", "z"), ("b", "a")])
    assert x.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert z.tolist() == [[0, 0, 1], [1, 1, 0]]


def test_constant_columns_are_left_out():
    x, z = baselines.varying(np.array([[1, 0, 2], [1, 1, 2]]), np.array([[0, 5, 6]]))
    assert x.tolist() == [[0], [1]]
    assert z.tolist() == [[5]]


def test_drfp_is_optional(monkeypatch):
    rows = [Row("CCBr.N", "CCN", reagent="[Na+].[OH-]"), Row("CCO", "CC=O")]
    monkeypatch.setitem(sys.modules, "drfp", None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps drfp"):
        baselines.drfp(rows)
    monkeypatch.undo()
    pytest.importorskip("drfp")
    found = baselines.drfp(rows, bits=512)
    assert found.shape == (2, 512)
    assert (found[0] != found[1]).any()


def test_suzuki_split_is_the_order_of_the_file(tmp_path):
    path = tmp_path / "suzuki.tsv"
    lines = [f"Brc1ccccc1.OB(O){'C' * k}.O>>c1ccccc1{'C' * k}\t0.{k}" for k in range(1, 10)]
    path.write_text("rxn\ty\n" + "\n".join(lines) + "\n")
    split = data.read_suzuki_split(path)
    assert [len(part) for part in (split.train, split.test, split.train_factors)] == [6, 3, 6]
    assert [round(r.yield_percent) for r in split.test] == [70, 80, 90]
    assert split.train_factors[0] == ("Brc1ccccc1", "CB(O)O", "O")
    path.write_text("rxn\ty\nC>>C\t0.1\nC>>C\t0.1\n")
    with pytest.raises(ValueError, match="1 of 2 rows were refused"):
        data.read_suzuki_split(path)


def test_random_splits_are_numbered_by_seed():
    assert [data.sheet_of("bh-FullCV", s) for s in (0, 9, 10)] == ["FullCV_01", "FullCV_10", "FullCV_01"]
    assert data.sheet_of("bh-Test3", 5) == "Test3"


# --- the world ----------------------------------------------------------------------------------------


def test_world_has_sixteen_types_and_hundreds_of_blocks():
    assert len(world.TYPES) == 16
    assert len(world.SEEN) == 12
    assert len({b for group in world.building_blocks().values() for b in group}) > 600


@pytest.mark.parametrize(("kind", "blocks", "made"), [
    ("Suzuki", ("Brc1ccncc1", "OB(O)c1ccccc1"), "c1ccc(-c2ccncc2)cc1"),
    ("amide coupling", ("CC(=O)O", "NCC"), "CCNC(C)=O"),
    ("click", ("CCN=[N+]=[N-]", "C#CC"), "CCn1cc(C)nn1"),
    ("sulfonamide", ("CS(=O)(=O)Cl", "CN"), "CNS(C)(=O)=O"),
    ("Sonogashira", ("Brc1ccccc1", "C#CC"), "CC#Cc1ccccc1"),
])  # fmt: skip
def test_templates_make_the_textbook_product(kind, blocks, made):
    assert world.product(kind, blocks) == canonical(made)


def test_reactions_are_distinct_canonical_and_repeatable():
    found = world.reactions("Suzuki", 60, seed=5)
    assert found == world.reactions("Suzuki", 60, seed=5)
    assert found != world.reactions("Suzuki", 60, seed=6)
    assert len({(r.reactant, r.reagent) for r in found}) == 60
    assert all(canonical(r.product) == r.product for r in found)
    with pytest.raises(ValueError, match="not 9999"):
        world.reactions("nitro reduction", 9999, seed=0)
    with pytest.raises(ValueError, match="'alchemy'"):
        world.reactions("alchemy", 1, seed=0)


def test_yield_rule_moves_with_substituents_and_noise_is_as_stated():
    plain, poor = "Brc1ccccc1.OB(O)c1ccccc1", "N#Cc1ccc(Br)cc1.OB(O)c1ccccc1"
    reagent = world.TYPES["Suzuki"].reagents[0]
    assert world.expected_yield("Suzuki", poor, reagent) > world.expected_yield("Suzuki", plain, reagent)
    assert world.expected_yield("Suzuki", plain, world.TYPES["Suzuki"].reagents[1]) < world.expected_yield(
        "Suzuki", plain, reagent
    )
    found = world.with_yields(world.reactions("Suzuki", 400, seed=1), seed=1)
    gap = np.array([r.yield_percent - world.expected_yield(r.kind, r.reactant, r.reagent) for r in found])
    assert abs(gap.std() - world.NOISE) < 1
    assert all(0 <= r.yield_percent <= 100 for r in found)
