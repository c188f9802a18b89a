"""Evidence on single images: what training normals look like, and which label others' cases would give."""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, uniform_filter
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from tmv_lib.pipeline.files import Images
from tmv_lib.pipeline.grey import luminance
from tmv_lib.statistics.resampling import patient_folds

PATCH, PATCH_STEP = 10, 4  # pixels of an image that is averaged down


def confident_guess(y_true: ArrayLike, y_prob: ArrayLike) -> NDArray[np.int64]:
    """The label that is confidently predicted, (n,), -1 where none is; out-of-sample y_prob (n,) in [0, 1].

    A class is confident where its probability reaches the mean probability of the cases that bear it; of two confident
    classes the more probable counts. (Northcutt, Jiang & Chuang 2021, uncalibrated.) Raises ValueError where a class
    bears no case.
    """
    y, probs = np.asarray(y_true, dtype=int), np.column_stack([1 - np.asarray(y_prob), np.asarray(y_prob)])
    if set(np.unique(y).tolist()) != {0, 1}:
        raise ValueError(f"confident learning needs both labels, 0 and 1, found {sorted(set(y.tolist()))}")
    confident = probs >= np.array([probs[y == label, label].mean() for label in (0, 1)]) - 1e-6
    guess = np.where(confident.all(axis=1), probs.argmax(axis=1), confident.argmax(axis=1))
    return np.where(confident.any(axis=1), guess, -1)


def confident_joint(y_true: ArrayLike, y_prob: ArrayLike) -> NDArray[np.int64]:
    """Counts (2, 2) of given label by the label that is confidently predicted; a case without one is left out."""
    y, guess = np.asarray(y_true, dtype=int), confident_guess(y_true, y_prob)
    return confusion_matrix(y[guess >= 0], guess[guess >= 0], labels=[0, 1])


def out_of_fold_probs(
    features: np.ndarray, y_true: np.ndarray, *, groups: np.ndarray, n_folds: int, rng: np.random.Generator
) -> np.ndarray:
    """Probability of each case by logistic heads fitted on other patients' features, (n,).

    features: (n, d), standardised here; strongly regularised (C = 0.001), since d may exceed n.
    """
    folds = PredefinedSplit(patient_folds(y_true, groups, n_folds=n_folds, rng=rng))
    head = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
    return cross_val_predict(head, features, y_true, cv=folds, method="predict_proba")[:, 1].astype(float)


def neighbour_agreement(
    features: np.ndarray, y_true: np.ndarray, reference: np.ndarray, reference_y: np.ndarray, *, k: int
) -> np.ndarray:
    """Share of the k nearest reference cases, by cosine distance, that bear a case's own label, (n,)."""
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(normalize(reference))
    nearest = search.kneighbors(normalize(features), return_distance=False)
    return (reference_y[nearest] == y_true[:, None]).mean(axis=1)


def residual_oddity(images: Images, normals: Images, *, components: int, side: int, seed: int) -> np.ndarray:
    """How odd the oddest spot of an image is against training normals, (n,): peak of a smoothed residual, squared.

    images, normals: uint8 (n, height, width). Both are averaged down to about `side` pixels, described by the
    principal components of the normals, and what these leave unexplained is averaged over 3 x 3 pixels in units of
    its spread among the normals. (Reconstruction error as novelty; Hoffmann 2007.)
    """
    step = max(1, images.shape[1] // side)
    small, reference = (_averaged(stack, step) for stack in (images, normals))
    model = PCA(min(components, len(reference) - 1), svd_solver="randomized", random_state=seed)
    model.fit(reference.reshape(len(reference), -1))

    def residual(stack: np.ndarray) -> np.ndarray:
        flat = stack.reshape(len(stack), -1)
        left = (flat - model.inverse_transform(model.transform(flat))).reshape(stack.shape)
        return uniform_filter(left, size=(0, 3, 3))

    spread = residual(reference).std(axis=0) + 1e-6
    return ((residual(small) / spread) ** 2).max(axis=(1, 2))


def patch_oddity(
    images: Images,
    normals: Images,
    *,
    side: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> np.ndarray:
    """How odd the oddest spot of an image is against training normals, (n,).

    images, normals: uint8 (n, height, width). All are averaged down to about `side` pixels and freed of slow changes of
    brightness. Every patch is as odd as it is far from the nearest one of the normals at the same place, give or take a
    pixel, in units of that distance's spread among the normals themselves. (A memory of normal patches: Roth et al.
    2022, here on pixels.) progress may wrap the places (`tqdm`).
    """
    step = max(1, images.shape[1] // side)
    small, known = (_averaged(stack, step) for stack in (images, normals))
    small, known = (stack - gaussian_filter(stack, (0, 6, 6)) for stack in (small, known))
    own = np.arange(0, len(known), 4)  # enough of them to know the spread
    worst = np.full(len(small), -np.inf)
    for y, x in progress(list(product(*(range(1, extent - PATCH, PATCH_STEP) for extent in small.shape[1:])))):
        bank = np.stack([_patches(known, y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=1)
        usual = _to_nearest(_patches(known[own], y, x), bank, leave_out=own)
        found = _to_nearest(_patches(small, y, x), bank)
        worst = np.maximum(worst, (found - usual.mean()) / (usual.std() + 1e-6))
    return worst


def _averaged(images: Images, step: int) -> np.ndarray:
    side = images.shape[1] // step
    parts = []
    for start in range(0, len(images), 512):
        cut = luminance(images[start : start + 512])[:, : side * step, : side * step]
        parts.append(cut.reshape(-1, side, step, side, step).mean(axis=(2, 4), dtype=np.float32))
    return np.concatenate(parts)


def _patches(stack: np.ndarray, y: int, x: int) -> np.ndarray:
    """The patch of every image at one place, flat, (n, pixels)."""
    return stack[:, y : y + PATCH, x : x + PATCH].reshape(len(stack), -1)


def _to_nearest(patches: np.ndarray, bank: np.ndarray, *, leave_out: np.ndarray | None = None) -> np.ndarray:
    """Distance (n,) of each patch (n, d) to the nearest one of the bank (images, shifts, d) of other images."""
    flat = bank.reshape(-1, bank.shape[2])
    length = (flat**2).sum(axis=1)
    nearest = np.empty(len(patches), np.float32)
    for start in range(0, len(patches), 512):
        part = patches[start : start + 512]
        squared = (part**2).sum(axis=1)[:, None] + length - 2 * part @ flat.T
        if leave_out is not None:
            rows = np.arange(len(part))
            squared.reshape(len(part), *bank.shape[:2])[rows, leave_out[start : start + 512]] = np.inf
        nearest[start : start + 512] = squared.min(axis=1)
    return np.sqrt(np.maximum(nearest, 0))
