"""Every registered target, and every form of it, under the one contract suite."""

from __future__ import annotations

import pytest

from edgeserve import plugins
from edgeserve_compilers.targets.base import Form, Target
from tests.suites.compiler import FormContract, TargetContract, forms_of

_FORMS = forms_of(name for name in plugins.names(plugins.TARGETS) if name != "null")


@pytest.fixture(scope="module", params=plugins.names(plugins.TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    return plugins.find(plugins.TARGETS, request.param)()


class TestTargets(TargetContract):
    pass


class TestForms(FormContract):
    @pytest.fixture(params=_FORMS.values(), ids=_FORMS)
    def form(self, request: pytest.FixtureRequest) -> Form:
        return request.param


class TestNull(FormContract):
    faithful = False

    @pytest.fixture
    def form(self) -> Form:
        return plugins.find(plugins.TARGETS, "null")().forms[0]
