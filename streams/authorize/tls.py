"""TLS for both doors: version 1.3 alone, and mutual where an authority of clients is named."""

from __future__ import annotations

import ssl

from schemas.errors import SettingsError
from streams.settings import PREFIX, Settings


def listening(settings: Settings, client_ca_file: str) -> ssl.SSLContext | None:
    """How a door speaks TLS; None where no certificate is given. With an authority of clients, who shows no certificate of it is not heard.

    SettingsError for files that cannot be read, that do not fit together, or an authority without a certificate of our own: it would protect nothing.
    """
    if not settings.tls_certificate_file:
        if client_ca_file or settings.tls_key_file:
            raise SettingsError(f"{PREFIX}TLS_CERTIFICATE_FILE: not given, though a key or an authority of clients is")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file or None, password=_no_password)
        if client_ca_file:
            context.load_verify_locations(client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SettingsError(f"{PREFIX}TLS_*_FILE: {error}") from None
    return context


def _no_password() -> str:
    """An encrypted key is refused: OpenSSL would ask on the terminal, and a service would wait there for ever."""
    raise ValueError("the private key is encrypted; give one that is not")
