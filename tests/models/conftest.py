"""Order of the tests that compare networks with reference implementations."""


def pytest_collection_modifyitems(items):
    """Run the tests of each network of test_zoo.py consecutively, so that it is built and compiled only once."""
    positions = [i for i, item in enumerate(items) if item.path.name == "test_zoo.py"]
    items_by_backbone = {}
    for i in positions:
        items_by_backbone.setdefault(items[i].callspec.params["case"].backbone, []).append(items[i])
    # Within a network, the tests of each reference's checkpoint are consecutive too.
    ordered = []
    for group in items_by_backbone.values():
        ordered += sorted(group, key=lambda item: item.callspec.params["case"])
    for i, item in zip(positions, ordered, strict=True):
        items[i] = item
