"""
The front's rules for a proxy that the operator already runs: nginx, Caddy, Envoy.

All three ask for a client certificate of the list (`routers.pem` in the home, which the running attester keeps up to
date), speak TLS 1.3 with the attested key, pass on nothing but the operations, hold nothing back, and add the engine's
key.  That key is never printed: it goes into a file of the home that the printed text includes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attester import identity
from attester.config import AttesterConfig, Home
from attester.errors import AttesterError, ConfigError
from attester.front.clients import ANCHORS, CADDY_ANCHORS, kept_routers, write_anchors
from attester.front.engine import IDLE_S
from attester.front.forward import REQUEST_HEADERS
from attester.front.operations import methods
from attester.front.process import engine_url, place_of
from attester.router_list import KnownRouter

_CONNECT_S: Final = 5
_NOT_PASSED: Final = (
    "Authorization", "Cookie", "Forwarded", "Proxy-Authorization", "Te", "Via", "X-Forwarded-For",
    "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip",
)  # fmt: skip
"""What a proxy that cannot name the headers to pass takes away."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is the same for every proxy."""

    home: Path
    host: str
    port: int
    engine: str
    """``HOST:PORT`` of the engine."""
    methods: Mapping[str, str]
    key: str | None
    max_body: int
    head_s: int
    body_s: int
    idle_s: int
    answer_s: int

    @property
    def listen(self) -> str:
        """``HOST:PORT`` to listen on; without a host, every address."""
        return f"{self.host}:{self.port}" if self.host else str(self.port)


def rules_of(home: Home, config: AttesterConfig) -> Rules:
    """
    The rules of a home.

    Raises:
        ConfigError: the engine does not serve plain HTTP.
        KeyFileError: the engine's key cannot be read.
    """
    scheme, _, engine = engine_url(config).partition("://")
    if scheme != "http":
        raise ConfigError("the printed rules are for an engine that serves plain HTTP on this machine")
    host, port = place_of(config)
    front = config.front
    return Rules(
        home=home.path.absolute(),
        host=f"[{host}]" if ":" in host else host,
        port=port,
        engine=engine if ":" in engine.rpartition("]")[2] else f"{engine}:80",
        methods=methods(config.engine.adapter, front.operations),
        key=home.engine_key(config),
        max_body=front.max_body,
        head_s=round(front.head_s),
        body_s=round(front.body_s),
        idle_s=round(front.idle_s),
        answer_s=round(front.answer_s),
    )


def write(home: Home, config: AttesterConfig, proxy: str, now: float) -> str:
    """
    The configuration of *proxy*; the files that it names are written into the home.

    Args:
        proxy: One of `PROXIES`.
        now: Seconds since 1970.

    Raises:
        AttesterError: the home cannot be used, or its paths or the engine's key cannot stand in the configuration.
    """
    rules = rules_of(home, config)
    for text in (str(rules.home), rules.key or ""):
        if any(c in text for c in "\"'\\${}\n\r;`#") or " " in text:
            raise ConfigError(
                "the home's path and the engine's key must do without spaces, quotes, and any of \\ $ { } ; ` #"
            )
    routers: tuple[KnownRouter, ...] = ()
    with contextlib.suppress(AttesterError):
        routers = kept_routers(home, max_age_s=config.front.routers_max_age_s, now=now)
    write_anchors(home, routers)
    render, key_line = PROXIES[proxy]
    key_file = home.path / f"{proxy}.key.conf"
    key_file.unlink(missing_ok=True)
    identity.write_private(key_file, b"" if rules.key is None else key_line.format(key=rules.key).encode())
    return render(rules)


def _error(message: str, code: str) -> str:
    return f'{{"error":{{"message":"{message}","type":"server_error","param":null,"code":"{code}"}}}}'


_UNKNOWN: Final = _error("this node has no such operation", "unknown_url").replace(
    "server_error", "invalid_request_error"
)
_TOO_LARGE: Final = _error("the body is too large", "body_too_large").replace(
    "server_error", "invalid_request_error"
)
_STRANGER: Final = _error("this node serves the routers of its verifier alone", "not_admitted")
_GONE: Final = _error("the engine does not answer", "engine_unreachable")
_LATE: Final = _error("the engine did not answer in time", "engine_timeout")


_NGINX_ERRORS: Final = f"""\
  # Routers know 495 as the refusal that it is; of itself nginx says 400, and blames the request.
  error_page 495 496 =495 @stranger;
  location @stranger {{ return 495 '{_STRANGER}'; }}
  error_page 413 @too_large;
  location @too_large {{ return 413 '{_TOO_LARGE}'; }}
  error_page 502 503 @gone;
  location @gone {{ return 502 '{_GONE}'; }}
  error_page 504 @late;
  location @late {{ return 504 '{_LATE}'; }}
"""


def _nginx(rules: Rules) -> str:
    passed = "\n".join(f'  "~^{method} {path}$" 1;' for path, method in rules.methods.items())
    headers = "\n".join(
        f"    proxy_set_header {name} $http_{name.lower().replace('-', '_')};" for name in REQUEST_HEADERS
    )
    return f"""\
# In the http section. After each change of {rules.home}/{ANCHORS}, tls.crt or tls.key: nginx -s reload
upstream touchstone_engine {{
  server {rules.engine};
  keepalive 32;
  keepalive_timeout {IDLE_S:.0f}s;
}}
# The request as it was sent: nothing is decoded or normalised before it is compared.
map "$request_method $request_uri" $touchstone_passed {{
  default 0;
{passed}
}}
server {{
  listen {rules.listen} ssl;
  server_tokens off;
  ssl_certificate {rules.home}/tls.crt;
  ssl_certificate_key {rules.home}/tls.key;
  ssl_protocols TLSv1.3;
  ssl_session_cache off;
  ssl_session_tickets off;
  ssl_client_certificate {rules.home}/{ANCHORS};
  ssl_verify_client on;
  client_header_timeout {rules.head_s}s;
  client_body_timeout {rules.body_s}s;
  client_max_body_size {rules.max_body};
  large_client_header_buffers 4 8k;
  keepalive_timeout {rules.idle_s}s;
  keepalive_requests 1000000;
  send_timeout {rules.body_s}s;
  default_type application/json;
{_NGINX_ERRORS}  location / {{
    if ($touchstone_passed = 0) {{ return 404 '{_UNKNOWN}'; }}
    proxy_pass http://touchstone_engine;
    proxy_http_version 1.1;
    proxy_pass_request_headers off;
    proxy_set_header Connection "";
{headers}
    include {rules.home}/nginx.key.conf;
    proxy_buffering off;
    proxy_request_buffering off;
    proxy_connect_timeout {_CONNECT_S}s;
    proxy_read_timeout {rules.answer_s}s;
    proxy_send_timeout {rules.answer_s}s;
    proxy_next_upstream off;
    proxy_hide_header Set-Cookie;
  }}
}}
"""


_CADDY_ERRORS: Final = f"""\
  handle_errors {{
    header Content-Type application/json
    @late expression {{http.error.status_code}} == 504
    respond @late `{_LATE}` 504
    @large expression {{http.error.status_code}} == 413
    respond @large `{_TOO_LARGE}` 413
    respond `{_GONE}` {{http.error.status_code}}
  }}
"""


def _caddy(rules: Rules) -> str:
    passed = ", ".join(f"'{method} {path}'" for path, method in rules.methods.items())
    # Where there is a key, its line replaces what the client has sent.
    names = [name for name in _NOT_PASSED if name != "Authorization" or rules.key is None]
    removed = "\n".join(f"      header_up -{name}" for name in names)
    bind = f"  bind {rules.host.strip('[]')}\n" if rules.host else ""
    return f"""\
# After each change of {rules.home}/{ANCHORS}, tls.crt or tls.key: caddy reload --force
{{
  auto_https off
  grace_period 10s
  servers {{
    protocols h1
    # The certificate is asked for whatever name the client calls; there is one site.
    strict_sni_host insecure_off
    max_header_size 32KB
    timeouts {{
      read_header {rules.head_s}s
      idle {rules.idle_s}s
    }}
  }}
}}
https://:{rules.port} {{
{bind}  tls {rules.home}/tls.crt {rules.home}/tls.key {{
    protocols tls1.3
    client_auth {{
      mode require_and_verify
      import {rules.home}/{CADDY_ANCHORS}
    }}
  }}
  # The request as it was sent: nothing is decoded or normalised before it is compared.
  @passed expression `({{method}} + " " + {{uri}}) in [{passed}]`
  handle @passed {{
    request_body {{
      max_size {rules.max_body}
    }}
    reverse_proxy {rules.engine} {{
      flush_interval -1
{removed}
      import {rules.home}/caddy.key.conf
      header_down -Set-Cookie
      transport http {{
        keepalive {IDLE_S:.0f}s
        dial_timeout {_CONNECT_S}s
        response_header_timeout {rules.answer_s}s
      }}
    }}
  }}
  handle {{
    header Content-Type application/json
    respond `{_UNKNOWN}` 404
  }}
{_CADDY_ERRORS}}}
"""


def _envoy(rules: Rules) -> str:
    host, _, port = rules.engine.rpartition(":")
    routes = "\n".join(
        f"""\
              - match:
                  path: {path}
                  headers: [{{name: ":method", string_match: {{exact: {method}}}}}]
                route: {{cluster: engine, timeout: 0s, idle_timeout: {rules.answer_s}s}}"""
        for path, method in rules.methods.items()
    )
    removed = ", ".join(name.lower() for name in _NOT_PASSED)
    credential = "" if rules.key is None else _ENVOY_CREDENTIAL.format(home=rules.home)
    return _ENVOY.format(
        rules=rules,
        anchors=f"{rules.home}/{ANCHORS}",
        host=rules.host.strip("[]") or "0.0.0.0",  # noqa: S104  # every address, as the operator has configured
        engine_host=host.strip("[]"),
        engine_port=port,
        routes=routes,
        removed=removed,
        credential=credential,
        unknown=_UNKNOWN,
        idle=f"{IDLE_S:.0f}",
        connect=_CONNECT_S,
    )


_ENVOY_CREDENTIAL: Final = """\
          - name: envoy.filters.http.credential_injector
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.credential_injector.v3.CredentialInjector
              overwrite: true
              credential:
                name: envoy.http.injected_credentials.generic
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic
                  header: authorization
                  credential:
                    name: engine-key
                    sds_config: {{path_config_source: {{path: {home}/envoy.key.conf}}, resource_api_version: V3}}
"""
_ENVOY_KEY: Final = """\
resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: engine-key
  generic_secret: {{secret: {{inline_string: "Bearer {key}"}}}}
"""
_ENVOY: Final = """\
# After each change of {anchors}, tls.crt or tls.key: restart Envoy (hot restart keeps streams).
static_resources:
  listeners:
  - name: touchstone
    address: {{socket_address: {{address: "{host}", port_value: {rules.port}}}}}
    per_connection_buffer_limit_bytes: 65536
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          disable_stateless_session_resumption: true
          disable_stateful_session_resumption: true
          common_tls_context:
            tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
            alpn_protocols: [http/1.1]
            tls_certificates:
            - certificate_chain: {{filename: {rules.home}/tls.crt}}
              private_key: {{filename: {rules.home}/tls.key}}
            validation_context: {{trusted_ca: {{filename: {anchors}}}}}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: touchstone
          codec_type: HTTP1
          server_name: touchstone
          request_headers_timeout: {rules.head_s}s
          stream_idle_timeout: {rules.answer_s}s
          max_request_headers_kb: 32
          path_with_escaped_slashes_action: REJECT_REQUEST
          common_http_protocol_options: {{idle_timeout: {rules.idle_s}s, headers_with_underscores_action: REJECT_REQUEST}}
          route_config:
            virtual_hosts:
            - name: engine
              domains: ["*"]
              request_headers_to_remove: [{removed}]
              response_headers_to_remove: [set-cookie]
              routes:
{routes}
              - match: {{prefix: "/"}}
                direct_response: {{status: 404, body: {{inline_string: '{unknown}'}}}}
          http_filters:
{credential}          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: engine
    type: STRICT_DNS
    connect_timeout: {connect}s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{idle_timeout: {idle}s}}
        explicit_http_config: {{http_protocol_options: {{}}}}
    load_assignment:
      cluster_name: engine
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: "{engine_host}", port_value: {engine_port}}}}}}}
"""

PROXIES: Final[Mapping[str, tuple[Callable[[Rules], str], str]]] = {
    "nginx": (_nginx, 'proxy_set_header Authorization "Bearer {key}";\n'),
    "caddy": (_caddy, 'header_up Authorization "Bearer {key}"\n'),
    "envoy": (
        _envoy,
        _ENVOY_KEY,
    ),
}
"""By name: what writes its configuration, and the line with the engine's key."""
