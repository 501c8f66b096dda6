#!/bin/sh
# Attaches the container engines of this machine to a hubcache, proves it with a pull, and detaches them again.
#
# POSIX sh. Needs root for files below /etc, curl or wget, and to merge an existing daemon.json: jq or python3.
# What was changed is remembered in /var/lib/hubcache-attach, so that --detach restores each file byte for byte.
set -eu

mirror='@MIRROR@' # host:port of the mirror and of the proxy, filled in when the cache serves this script
proxy='@PROXY@'
state=${HUBCACHE_ATTACH_STATE:-/var/lib/hubcache-attach}
root=${HUBCACHE_ATTACH_ROOT:-} # prefix of all files; tests set it
image=hello-world
mode=attach
by=mirror
registry=docker.io # the directory of hosts.toml: of one registry, or _default
dry=
prove=yes

usage() {
    cat <<'END'
usage: attach [--cache HOST] [--mirror HOST:PORT] [--proxy [HOST:PORT]] [--all-registries] [--dry-run] [--no-pull]
              [--image IMAGE]
       attach --detach [--dry-run]

  --cache HOST         the machine of the cache; its mirror is at port 5000, its proxy at port 8080
  --mirror HOST:PORT   the address of the mirror, if the port is another one
  --proxy [HOST:PORT]  attach Docker Engine by the proxy (logged-in pulls, pushes, other registries); restarts it
  --all-registries     send pulls from all registries to the mirror (it needs hubcache_registries=*), not only those
                       from Docker Hub; for Docker Engine that reads hosts.toml, and containerd
  --dry-run            show what would be changed, and change nothing
  --no-pull            do not prove it with a pull
  --image IMAGE        the image to pull for that (default: hello-world)
  --detach             restore all files that this script changed
END
}

say() { printf 'attach: %s\n' "$*"; }

fail() {
    printf 'attach: %s\n' "$*" >&2
    exit 1
}

runs() { has systemctl && systemctl is-active --quiet "$1" 2>/dev/null; }

has() { command -v "$1" >/dev/null 2>&1; }

fetch() {
    if has curl; then curl -fsS --max-time 20 "$1"; else wget -q -T 20 -O - "$1"; fi
}

# --- Files: each is backed up once before its first change. ---------------------------------------------------------

key() { printf '%s' "$1" | sed 's|%|%25|g; s|/|%2F|g'; }

# path_of FILE: its path below the root; of a symbolic link, the path of its target, so that the link stays.
path_of() {
    if [ -L "$root$1" ]; then readlink -f "$root$1"; else printf '%s' "$root$1"; fi
}

# change FILE TEXT: make FILE contain TEXT. Sets changed=yes unless it did already.
change() {
    path=$(path_of "$1")
    if [ -f "$path" ] && [ "$(cat "$path"; echo .)" = "$2
." ]; then return 0; fi
    changed=yes
    if [ -n "$dry" ]; then
        say "would write $1:"
        printf '%s\n' "$2" | sed 's/^/    /'
        return 0
    fi
    say "writing $1"
    remember "$1"
    mkdir -p "$(dirname "$path")"
    temporary=$path.hubcache-new
    (umask 077 && printf '%s\n' "$2" >"$temporary")
    if [ -e "$path" ]; then
        chmod --reference="$path" "$temporary" 2>/dev/null || chmod "$(mode_of "$path")" "$temporary"
    else
        chmod 644 "$temporary"
    fi
    mv -f "$temporary" "$path"
    cksum <"$path" >"$state/$(key "$1").written"
}

mode_of() { stat -c %a "$1" 2>/dev/null || stat -f %Lp "$1"; }

# remember FILE: keep what it is now, and which of its directories do not exist yet.
remember() {
    name=$state/$(key "$1")
    mkdir -p "$state"
    chmod 700 "$state"
    if grep -qxF -- "$1" "$state/files" 2>/dev/null; then return 0; fi
    rm -f "$name.original" "$name.absent" # incomplete, if this was interrupted: the file is not changed yet
    if [ -e "$root$1" ]; then
        cp -p "$root$1" "$name.original"
    else
        directory=$(dirname "$1")
        : >"$name.absent"
        while [ ! -d "$root$directory" ]; do
            printf '%s\n' "$directory" >>"$name.absent"
            directory=$(dirname "$directory")
        done
    fi
    printf '%s\n' "$1" >>"$state/files"
}

# has_changed FILE: whether the file was changed after this script wrote it.
has_changed() {
    written=$state/$(key "$1").written
    [ -e "$root$1" ] && [ -e "$written" ] && [ "$(cksum <"$root$1")" != "$(cat "$written")" ]
}

# restore FILE: make it what it was, unless it has been changed since.
restore() {
    name=$state/$(key "$1")
    path=$(path_of "$1")
    if has_changed "$1"; then
        say "$1 was changed after it was attached: not restored; the original is $name.original"
        kept=yes
        return 0
    fi
    if [ -n "$dry" ]; then
        say "would restore $1"
        return 0
    fi
    say "restoring $1"
    if [ -e "$name.original" ]; then
        cp -p "$name.original" "$path.hubcache-new"
        mv -f "$path.hubcache-new" "$path"
    else
        rm -f "$path"
        while read -r directory; do rmdir "$root$directory" 2>/dev/null || true; done <"$name.absent"
    fi
    # A file that is restored is never restored again: the next --detach would remove it.
    grep -vxF -- "$1" "$state/files" >"$state/files.new" || true
    mv -f "$state/files.new" "$state/files"
    rm -f "$name.original" "$name.absent" "$name.written"
}

# --- Engines -------------------------------------------------------------------------------------------------------

hosts_toml() { # hosts_toml CAPABILITIES
    if [ "$registry" = docker.io ]; then printf 'server = "https://registry-1.docker.io"\n\n'; fi
    cat <<END
[host."http://$mirror"]
capabilities = [$1]
END
}

docker_answers() { has docker && docker info >/dev/null 2>&1; }

# Docker Engine reads hosts.toml from version 28 on, with the containerd image store only.
docker_reads_hosts() {
    docker_is_at_least 28 0 && docker info -f '{{.DriverStatus}}' 2>/dev/null | grep -q io.containerd.snapshotter
}

# It asks for referrers (attestations) from version 29.1 on; older versions reject the file for the unknown word.
docker_capabilities() {
    if docker_is_at_least 29 1; then echo '"pull", "resolve", "referrers"'; else echo '"pull", "resolve"'; fi
}

docker_is_at_least() { # docker_is_at_least MAJOR MINOR
    version=$(docker version -f '{{.Server.Version}}' 2>/dev/null) || return 1
    major=${version%%.*}
    minor=${version#*.}
    minor=${minor%%.*}
    case $major$minor in '' | *[!0-9]*) return 1 ;; esac
    [ "$major" -gt "$1" ] || { [ "$major" -eq "$1" ] && [ "$minor" -ge "$2" ]; }
}

# daemon_json FILE [URL]: print FILE with URL as its first mirror, or without URL with an empty list of mirrors.
daemon_json() {
    url=${2:-}
    if [ ! -s "$1" ]; then
        printf '{\n  "registry-mirrors": [%s]\n}\n' "${url:+\"$url\"}"
    elif has jq; then
        jq --arg url "$url" '."registry-mirrors" =
            if $url == "" then [] else [$url] + ((."registry-mirrors" // []) - [$url]) end' "$1" ||
            fail "/etc/docker/daemon.json is not valid JSON"
    elif has python3; then
        python3 - "$1" "$url" <<'END' || fail "/etc/docker/daemon.json is not valid JSON"
import json, sys
path, url = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    settings = json.load(file)
others = [mirror for mirror in settings.get("registry-mirrors", []) if mirror != url]
settings["registry-mirrors"] = [url, *others] if url else []
print(json.dumps(settings, indent=2, ensure_ascii=False))
END
    else
        fail "/etc/docker/daemon.json exists: install jq or python3, so that its other settings are kept"
    fi
}

# dockerd keeps its mirrors at a reload if daemon.json has no registry-mirrors: it must read an empty list once.
forget_mirrors() {
    original=$state/$(key /etc/docker/daemon.json).original
    if [ -n "$dry" ] || has_changed /etc/docker/daemon.json || grep -q '"registry-mirrors"' "$original" 2>/dev/null; then return 0; fi
    [ -e "$original" ] || original=/dev/null
    text=$(daemon_json "$original") || exit 1
    change /etc/docker/daemon.json "$text"
    reload_docker
    sleep 1 # the daemon reads the file after the signal
}

reload_docker() {
    if runs docker; then
        act systemctl reload docker
    elif [ -s "$root/var/run/docker.pid" ]; then
        act kill -HUP "$(cat "$root/var/run/docker.pid")"
    else
        say "reload dockerd (SIGHUP) to use the change"
    fi
}

act() {
    if [ -n "$dry" ]; then say "would run: $*"; else say "running: $*" && "$@"; fi
}

attach_docker() {
    docker_answers || return 0
    found=yes
    changed=
    if [ "$by" = proxy ]; then
        attach_docker_proxy
    elif docker_reads_hosts; then
        say "Docker Engine reads hosts.toml at each pull: no restart"
        change "/etc/docker/certs.d/$registry/hosts.toml" "$(hosts_toml "$(docker_capabilities)")"
    else
        if [ "$registry" = _default ]; then
            say "this Docker Engine has mirrors for Docker Hub only (all registries: version 28 with the containerd image store)"
        fi
        text=$(daemon_json "$root/etc/docker/daemon.json" "http://$mirror") || exit 1
        change /etc/docker/daemon.json "$text"
        if [ -n "$changed" ]; then reload_docker; fi
    fi
    any=$any$changed
}

certificates() { # the directory of the distribution's CA certificates
    for directory in /etc/ssl/certs /etc/pki/tls/certs; do
        if [ -d "$directory" ] && [ ! -L "$directory" ]; then
            printf '%s' "$directory"
            return 0
        fi
    done
    printf '/etc/ssl/certs'
}

attach_docker_proxy() {
    has systemctl || fail "--proxy needs systemd; set HTTPS_PROXY and SSL_CERT_DIR for dockerd by hand (see /setup)"
    ca=$(fetch "http://$mirror/ca.crt") || fail "http://$mirror/ca.crt cannot be fetched"
    change /etc/docker/hubcache/ca.crt "$ca"
    change /etc/systemd/system/docker.service.d/hubcache.conf "$(cat <<END
[Service]
Environment="HTTPS_PROXY=http://$proxy"
Environment="NO_PROXY=localhost,127.0.0.0/8,::1"
Environment="SSL_CERT_DIR=/etc/docker/hubcache:$(certificates)"
END
)"
    if [ -n "$changed" ]; then
        act systemctl daemon-reload
        act systemctl restart docker
    fi
}

attach_containerd() {
    config=$root/etc/containerd/config.toml
    [ -f "$config" ] || return 0
    found=yes
    changed=
    change "/etc/containerd/certs.d/$registry/hosts.toml" "$(hosts_toml '"pull", "resolve"')"
    any=$any$changed
    if ! grep -q '^[[:space:]]*config_path[[:space:]]*=[[:space:]]*["'\''][^"'\'']*/etc/containerd/certs\.d' "$config"; then
        say "/etc/containerd/config.toml has no config_path = \"/etc/containerd/certs.d\": add it for pulls by Kubernetes (see /setup)"
    fi
}

attach_containers() { # podman, buildah, skopeo, CRI-O
    if ! has podman && ! has buildah && ! has skopeo && ! has crio; then return 0; fi
    found=yes
    changed=
    change /etc/containers/registries.conf.d/50-hubcache.conf "$(cat <<END
[[registry]]
location = "docker.io"

[[registry.mirror]]
location = "$mirror"
insecure = true
END
)"
    any=$any$changed
    if [ -n "$changed" ] && runs crio; then act systemctl reload crio; fi
}

attach_k3s() {
    for kind in k3s rke2; do
        [ -d "$root/etc/rancher/$kind" ] || continue
        found=yes
        changed=
        file=/etc/rancher/$kind/registries.yaml
        if [ -s "$root$file" ] && [ ! -e "$state/$(key $file).written" ]; then
            say "$file exists: add the mirror there by hand (see /setup)"
            continue
        fi
        change "$file" "$(cat <<END
mirrors:
  docker.io:
    endpoint:
      - "http://$mirror"
END
)"
        any=$any$changed
        if [ -n "$changed" ]; then say "restart $kind when it suits you: it reads $file at start only"; fi
    done
}

# --- Proof ---------------------------------------------------------------------------------------------------------

answered() { fetch "http://$mirror/setup/answered" 2>/dev/null || echo 0; }

pull() {
    if docker_answers; then
        docker rmi "$image" >/dev/null 2>&1 || true
        docker pull -q "$image"
    elif has podman; then
        podman rmi "docker.io/library/$image" >/dev/null 2>&1 || true
        podman pull -q "docker.io/library/$image"
    elif has skopeo; then
        copy=$(mktemp -d)
        skopeo copy -q "docker://docker.io/library/$image" "dir:$copy"
        rm -rf "$copy"
    else
        return 2
    fi
}

proof() {
    before=$(answered)
    say "pulling $image to prove it"
    status=0
    pull >/dev/null || status=$?
    if [ "$status" -eq 2 ]; then
        say "no client to prove it with: pull an image, and look at http://$mirror/setup"
        return 0
    fi
    [ "$status" -eq 0 ] || fail "the pull of $image failed"
    after=$(answered)
    [ "$after" -gt "$before" ] || fail "the pull of $image worked, but did not come through the cache at $mirror"
    say "done: the cache answered $((after - before)) requests of that pull"
}

# --- Command line --------------------------------------------------------------------------------------------------

while [ $# -gt 0 ]; do
    case $1 in
    --cache)
        [ $# -ge 2 ] || fail "--cache needs a host"
        mirror=$2:5000 proxy=$2:8080
        shift
        ;;
    --mirror)
        [ $# -ge 2 ] || fail "--mirror needs HOST:PORT"
        mirror=$2
        shift
        ;;
    --proxy)
        by=proxy
        case ${2:-} in '' | -*) ;; *) proxy=$2 && shift ;; esac
        ;;
    --image)
        [ $# -ge 2 ] || fail "--image needs a name"
        image=$2
        shift
        ;;
    --all-registries) registry=_default ;;
    --dry-run) dry=yes ;;
    --no-pull) prove= ;;
    --detach) mode=detach ;;
    --help | -h)
        usage
        exit 0
        ;;
    *)
        usage >&2
        fail "unknown argument: $1"
        ;;
    esac
    shift
done

if [ "$mode" = detach ]; then
    [ -s "$state/files" ] || {
        say "nothing to change: not attached"
        exit 0
    }
    kept=
    restored=$(cat "$state/files")
    case $restored in */docker/daemon.json*) forget_mirrors ;; esac
    for file in $restored; do restore "$file"; done
    case $restored in
    */docker.service.d/*)
        act systemctl daemon-reload
        act systemctl restart docker
        ;;
    */docker/daemon.json*) reload_docker ;;
    esac
    if [ -z "$dry" ] && [ -z "$kept" ]; then rm -rf "$state"; fi
    exit 0
fi

case $mirror in @*) fail "which cache? --cache HOST" ;; esac
fetch "http://$mirror/v2/" >/dev/null || fail "no cache answers at http://$mirror/v2/"
found=
any=
attach_docker
if [ "$by" = mirror ]; then
    attach_containerd
    attach_containers
    attach_k3s
fi
[ -n "$found" ] || fail "no container engine found (docker, containerd, podman, buildah, skopeo, CRI-O, k3s, RKE2)"
[ -n "$any" ] || say "nothing to change"
if [ -n "$prove" ] && [ -z "$dry" ]; then proof; fi
