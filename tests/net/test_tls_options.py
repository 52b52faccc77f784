"""Laws of TLS options: refused values, and the context they create (C7, C28)."""

import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from svcrun._net.tls_options import SSLOptions
from svcrun.errors import ParameterError, ParameterTypeError
from tests.conftest import Certificates
from tests.support import refuses

SERVER, CLIENT = ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH


def server_options(certificates: Certificates, **changes: Any) -> SSLOptions:
    """Return a server's options with some of them changed."""
    parameters: dict[str, Any] = {
        "cert": certificates.server_cert,
        "key": certificates.server_key,
        "ca": None,
        "verify": True,
        "require_client_cert": False,
        "purpose": SERVER,
        **changes,
    }
    return SSLOptions(**parameters)


def client_options(**changes: Any) -> SSLOptions:
    """Return a client's options with some of them changed."""
    parameters: dict[str, Any] = {
        "cert": None,
        "key": None,
        "ca": None,
        "verify": True,
        "require_client_cert": False,
        "purpose": CLIENT,
        **changes,
    }
    return SSLOptions(**parameters)


def test_the_parameters_have_the_order_of_aiomisc(certificates: Certificates) -> None:
    options = SSLOptions(
        certificates.server_cert,
        str(certificates.server_key),
        certificates.ca,
        False,
        True,
        SERVER,
        ssl.TLSVersion.TLSv1_2,
        ssl.TLSVersion.TLSv1_3,
        ("ECDHE-RSA-AES256-GCM-SHA384",),
    )
    context = options.create_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert "ECDHE-RSA-AES256-GCM-SHA384" in {cipher["name"] for cipher in context.get_ciphers()}


class TestServerContext:
    """The checks of a server."""

    @pytest.mark.parametrize(
        ("ca", "verify", "require", "mode"),
        [
            (False, True, False, ssl.CERT_NONE),
            (False, False, False, ssl.CERT_NONE),
            (True, False, False, ssl.CERT_NONE),
            (True, True, False, ssl.CERT_OPTIONAL),
            (True, True, True, ssl.CERT_REQUIRED),
            (True, False, True, ssl.CERT_REQUIRED),
        ],
    )
    def test_certificates_of_clients_are_verified_as_the_parameters_say(
        self,
        certificates: Certificates,
        *,
        ca: bool,
        verify: bool,
        require: bool,
        mode: ssl.VerifyMode,
    ) -> None:
        context = server_options(
            certificates,
            ca=certificates.ca if ca else None,
            verify=verify,
            require_client_cert=require,
        ).create_context()
        assert context.verify_mode is mode
        # Only `ca` is trusted, and no client is asked after the handshake.
        assert len(context.get_ca_certs()) == (1 if ca else 0)
        assert not context.post_handshake_auth

    def test_versions_are_1_3_by_default(self, certificates: Certificates) -> None:
        context = server_options(certificates).create_context()
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.options & ssl.OP_NO_COMPRESSION

    def test_certificate_and_key_may_be_one_file(
        self, certificates: Certificates, tmp_path: Path
    ) -> None:
        both = tmp_path / "both.pem"
        both.write_bytes(
            certificates.server_key.read_bytes() + certificates.server_cert.read_bytes()
        )
        server_options(certificates, cert=both, key=None).create_context()


class TestClientContext:
    """The checks of a client."""

    def test_a_client_that_verifies_checks_chain_and_host_name(
        self, certificates: Certificates
    ) -> None:
        context = client_options(ca=certificates.ca).create_context()
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert len(context.get_ca_certs()) == 1

    def test_a_client_that_does_not_verify_checks_nothing(self, certificates: Certificates) -> None:
        context = client_options(ca=certificates.ca, verify=False).create_context()
        assert context.verify_mode is ssl.CERT_NONE
        assert not context.check_hostname

    def test_a_client_without_ca_trusts_the_authorities_of_the_system(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[ssl.Purpose] = []

        def load_default_certs(context: ssl.SSLContext, purpose: ssl.Purpose) -> None:
            loaded.append(purpose)

        monkeypatch.setattr(ssl.SSLContext, "load_default_certs", load_default_certs)
        client_options().create_context()
        assert loaded == [CLIENT]
        client_options(verify=False).create_context()
        assert loaded == [CLIENT]

    def test_a_client_may_have_a_certificate(self, certificates: Certificates) -> None:
        client_options(cert=certificates.client_cert, key=certificates.client_key).create_context()


class TestMistakes:
    """C7."""

    @pytest.mark.parametrize("name", ["cert", "key", "ca"])
    def test_a_file_that_does_not_exist_is_an_error_that_names_parameter_and_path(
        self, certificates: Certificates, name: str, tmp_path: Path
    ) -> None:
        for path in (tmp_path / "none.pem", tmp_path):
            with pytest.raises(FileNotFoundError) as caught:
                server_options(certificates, owner="The server", **{name: path})
            assert caught.value.filename == str(path)
            assert f"The server: {name}" in str(caught.value)

    @pytest.mark.parametrize(
        ("changes", "error", "named"),
        [
            ({"cert": 5}, ParameterTypeError, "cert=5"),
            ({"cert": ""}, ParameterError, "cert=''"),
            ({"cert": None, "key": None}, ParameterError, "cert=None"),
            ({"cert": None}, ParameterError, "cert=None"),
            ({"verify": 1}, ParameterTypeError, "verify=1"),
            ({"require_client_cert": "yes"}, ParameterTypeError, "require_client_cert='yes'"),
            ({"require_client_cert": True}, ParameterError, "ca=None"),
            ({"purpose": "server"}, ParameterError, "purpose='server'"),
            ({"minimum_version": "TLSv1.2"}, ParameterTypeError, "minimum_version='TLSv1.2'"),
            ({"maximum_version": 3}, ParameterTypeError, "maximum_version=3"),
            (
                {"maximum_version": ssl.TLSVersion.TLSv1_2},
                ParameterError,
                "maximum_version=<TLSVersion.TLSv1_2",
            ),
        ],
    )
    def test_a_wrong_value_is_an_error_that_names_owner_parameter_and_value(
        self,
        certificates: Certificates,
        changes: dict[str, Any],
        error: type[Exception],
        named: str,
    ) -> None:
        with pytest.raises(error) as caught:
            server_options(certificates, owner="The server", **changes)
        assert "The server" in str(caught.value)
        assert refuses(caught.value, named)

    def test_unknown_ciphers_are_an_error(self, certificates: Certificates) -> None:
        options = server_options(certificates, ciphers="ROT13")
        with pytest.raises(ParameterError, match=r"ciphers must be .*ROT13"):
            options.create_context()

    @pytest.mark.parametrize("name", ["cert", "key", "ca"])
    def test_a_file_with_other_contents_is_an_error_that_names_the_parameter(
        self, certificates: Certificates, tmp_path: Path, name: str
    ) -> None:
        garbage = tmp_path / "garbage.pem"
        garbage.write_text("-----BEGIN NOTHING-----\nxyz\n")
        options = server_options(certificates, **{name: garbage})
        with pytest.raises(ParameterError, match=f"{name} must be .*garbage.pem"):
            options.create_context()

    def test_a_key_of_another_certificate_is_an_error(self, certificates: Certificates) -> None:
        options = server_options(certificates, key=certificates.client_key)
        with pytest.raises(ParameterError, match=r"key must be .*server.pem.*client.key"):
            options.create_context()

    def test_an_encrypted_key_is_refused_without_a_question_at_the_terminal(
        self, certificates: Certificates, tmp_path: Path
    ) -> None:
        key = serialization.load_pem_private_key(certificates.server_key.read_bytes(), None)
        encrypted = tmp_path / "encrypted.key"
        encrypted.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        options = server_options(certificates, key=encrypted)
        with pytest.raises(ParameterError, match=r"key must be .*encrypted, not .*encrypted.key"):
            options.create_context()

    @pytest.mark.parametrize("name", ["cert", "key", "ca"])
    def test_an_unreadable_file_is_an_error_that_names_the_parameter(
        self,
        certificates: Certificates,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        locked = tmp_path / "locked.pem"
        locked.write_bytes(certificates.ca.read_bytes())
        options = server_options(certificates, **{name: locked})

        def forbid(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied", str(locked))

        if os.geteuid() != 0:
            locked.chmod(0)
        elif name == "ca":
            monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", forbid)
        else:
            original = open

            def open_others(path: Any, *args: Any) -> Any:
                return forbid() if path == str(locked) else original(path, *args)

            monkeypatch.setattr("builtins.open", open_others)
        with pytest.raises(PermissionError, match=f"{name} can't be read.*locked.pem"):
            options.create_context()

    def test_a_file_that_vanished_after_the_check_is_an_error(
        self, certificates: Certificates, tmp_path: Path
    ) -> None:
        path = tmp_path / "short-lived.pem"
        path.write_bytes(certificates.server_cert.read_bytes())
        options = server_options(certificates, cert=path)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"cert can't be read.*short-lived.pem"):
            options.create_context()


def test_a_plain_server_does_not_load_ssl() -> None:
    """It costs memory and time, and only TLS needs it."""
    program = "import svcrun.service.tcp, sys; print('svcrun._net.tls_options' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
