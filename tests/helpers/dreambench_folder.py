"""A folder of DreamBench's shape: three subjects of four made pictures."""

from pathlib import Path

from PIL import Image

#: The shape of the data set's own file, with prompts of our own.
LISTED = """\
Classes

subject_name,class
red_toy,toy
small_dog,dog
tree_house,stuffed animal

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
"a {0} {1} in the car".format(unique_token, class_token)
]
"""
COLOURS = {"red_toy": "red", "small_dog": "green", "tree_house": "blue"}


def write_folder(path: Path) -> Path:
    """Write the folder."""
    for name, colour in COLOURS.items():
        (path / name).mkdir(parents=True)
        for i in range(4):
            picture = Image.new("RGB", (24 + 4 * i, 24), colour)
            picture.paste("white", (2 * i, 3, 2 * i + 6, 12))
            picture.save(path / name / f"{i:02d}.jpg")
    (path / "prompts_and_classes.txt").write_text(LISTED)
    (path / "references_and_licenses.txt").write_text("ours\n")
    return path
