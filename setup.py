"""What pyproject.toml cannot say: the presets lie in `configs/`, and are installed as part of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["robovlms*"]), "robovlms.configs"],
    package_dir={"robovlms.configs": "configs"},
    package_data={"robovlms": ["**/templates/*", "sims/calvin/chains.json"], "robovlms.configs": ["**/*.yaml"]},
    include_package_data=False,
)
