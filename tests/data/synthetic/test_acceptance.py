"""Whether others find the poses: SIFT and the essential matrix, knowing only images and lenses."""

import numpy as np
import pytest

from lite3r_jax.data.synthetic.source import SyntheticScenes

SCENES, FRAMES, SIZE = 10, 5, (432, 576)


def degrees(cosine) -> float:
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def errors(sample, features, i, j):
    """(rotation, direction of translation) of view j from view i, in degrees."""
    import cv2

    (points_i, descriptors_i), (points_j, descriptors_j) = features[i], features[j]
    pairs = cv2.BFMatcher().knnMatch(descriptors_i, descriptors_j, k=2)
    good = [a for a, b in pairs if a.distance < 0.8 * b.distance]
    k = sample.intrinsics.astype(float)
    sides = [
        cv2.undistortPoints(np.array(points)[:, None], k[view], None)[:, 0]
        for view, points in (
            (i, [points_i[m.queryIdx].pt for m in good]),
            (j, [points_j[m.trainIdx].pt for m in good]),
        )
    ]
    cv2.setRNGSeed(0)
    essential, mask = cv2.findEssentialMat(*sides, np.eye(3), cv2.RANSAC, 0.9999, 0.5 / k[i, 0, 0])
    _, rotation, direction, _ = cv2.recoverPose(essential, *sides, np.eye(3), mask=mask)
    e = sample.extrinsics.astype(float)
    true = e[j, :, :3] @ e[i, :, :3].T
    shift = e[j, :, 3] - true @ e[i, :, 3]
    return (
        degrees((np.trace(rotation @ true.T) - 1) / 2),
        degrees(direction[:, 0] @ shift / np.linalg.norm(shift)),
    )


@pytest.mark.slow
@pytest.mark.optimized  # drawing takes most of its time
def test_sift_and_the_essential_matrix_recover_the_poses():
    import cv2

    source = SyntheticScenes("test", SCENES, FRAMES, samples=2, renderer="jax")
    sift, measured = cv2.SIFT_create(2000, contrastThreshold=0.02), []
    for scene in source.scenes:
        sample = source.read(scene, range(FRAMES), SIZE)
        gray = [
            cv2.cvtColor(np.rint(image * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
            for image in sample.images
        ]
        features = [sift.detectAndCompute(image, None) for image in gray]
        pairs = [(i, j) for i in range(FRAMES) for j in (i + 1, i + 2) if j < FRAMES]
        measured += [errors(sample, features, i, j) for i, j in pairs]
    assert len(measured) >= 40 and SCENES >= 10
    rotation, direction = np.median(measured, axis=0)
    print(f"{len(measured)} pairs: {rotation:.3f} and {direction:.3f} degrees")
    assert rotation < 1 and direction < 2
