#!/usr/bin/env bash
# Two Ray nodes on one machine, each in a network namespace of its own, joined by a bridge.
# Needs root and iproute2. For tests of what crosses a network; the machine's own network is left alone.
#
#   clusters/two_nodes.sh up [RESOURCES_A RESOURCES_B]   start both nodes (JSON resources of each)
#   clusters/two_nodes.sh exec a|b COMMAND...            run a command inside a node's namespace
#   clusters/two_nodes.sh cut SECONDS                    take the link down for a while
#   clusters/two_nodes.sh kill b                         kill -9 every Ray process of a node
#   clusters/two_nodes.sh start b [RESOURCES]            start a node again
#   clusters/two_nodes.sh down                           end everything and remove the namespaces
#
# Each node has a disk of its own at /tmp/stillhouse-two-nodes/local, as machines do: what one puts
# there the other does not see. From outside it is /tmp/stillhouse-two-nodes/a/local, or b/local.
#
# STILLHOUSE_RAY names the `ray` executable (default: the one on PATH or in .venv).
set -euo pipefail

prefix=stillhouse
bridge=shbr0
net=198.18.0
declare -A address=([a]=$net.1 [b]=$net.2)
home=${STILLHOUSE_TWO_NODES:-/tmp/stillhouse-two-nodes}
here=$(cd "$(dirname "$0")/.." && pwd)
ray=${STILLHOUSE_RAY:-$(command -v ray || echo "$here/.venv/bin/ray")}
# A link that is down for half a minute must not end a node: more missed health checks, and time
# for a raylet to find the head again.
export RAY_health_check_failure_threshold=20
export RAY_health_check_timeout_ms=10000
export RAY_gcs_rpc_server_reconnect_timeout_s=120
# Only a head turns token authentication on by itself; every other process is told.
export RAY_AUTH_MODE=token

inside() {
  local node=$1
  shift
  mkdir -p "$home/$node/local" "$home/local"
  # Mounts made inside `ip netns exec` stay inside.
  ip netns exec "$prefix-$node" sh -c 'mount --bind "$1" "$2" && shift 2 && exec "$@"' sh \
    "$home/$node/local" "$home/local" "$@"
}

link() {
  local node=$1
  ip netns add "$prefix-$node"
  ip link add "sh-$node" type veth peer name eth0 netns "$prefix-$node"
  ip link set "sh-$node" master "$bridge" up
  inside "$node" ip addr add "${address[$node]}/24" dev eth0
  inside "$node" ip link set eth0 up
  inside "$node" ip link set lo up
}

start() {
  local node=$1 resources=${2:-"{}"} folder=$home/$1
  mkdir -p "$folder"
  local common=(--node-ip-address "${address[$node]}" --num-cpus 1 --resources "$resources"
    --object-store-memory 400000000 --disable-usage-stats)
  if [ "$node" = a ]; then
    inside a "$ray" start --head --port 6380 --include-dashboard=false --temp-dir "$folder" "${common[@]}"
  else
    inside "$node" "$ray" start --address "${address[a]}:6380" "${common[@]}"
  fi
}

# Every process of a namespace, and none outside it.
kill_node() {
  while [ -n "$(ip netns pids "$prefix-$1")" ]; do
    ip netns pids "$prefix-$1" | xargs -r kill -9 2>/dev/null || true
    sleep 0.1
  done
}

down() {
  for node in a b; do
    if ip netns list | grep -q "^$prefix-$node\b"; then
      kill_node "$node"
      ip netns del "$prefix-$node"
    fi
    # A namespace goes some time after its last socket; its end of the link must not wait for that.
    ip link del "sh-$node" 2>/dev/null || true
  done
  ip link del "$bridge" 2>/dev/null || true
  rm -rf "$home"
}

case ${1:-} in
  up)
    trap 'down' ERR
    [ -s ~/.ray/auth_token ] || "$ray" get-auth-token --generate >/dev/null
    ip link add "$bridge" type bridge
    ip link set "$bridge" up
    link a
    link b
    start a "${2:-"{}"}"
    start b "${3:-"{}"}"
    ;;
  exec) shift; inside "$@" ;;
  cut)
    ip link set sh-b down
    trap 'ip link set sh-b up' EXIT
    sleep "$2"
    ;;
  kill) kill_node "$2" ;;
  start) start "$2" "${3:-"{}"}" ;;
  down) down ;;
  *) sed -n '2,16p' "$0" >&2; exit 2 ;;
esac
