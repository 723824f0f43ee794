# What the demos share; they source it from the repository's root. Steps are told to standard error, and whatever a demo
# started ends with it.
services=()

# Whatever ends the script, Ctrl-C included, ends everything it started.
stop() { trap - EXIT INT TERM; kill $(jobs -p) 2>/dev/null || true; wait; }
trap stop EXIT
trap 'stop; exit 130' INT
trap 'stop; exit 143' TERM

step() { printf '\n%s\n' "$*" >&2; }
serve() { "$@" & services+=($!); }
# Steps run beside the shell, so that a signal is heard at once and a service that ends ends the demo.
run() {
    local status=0
    "$@" &
    wait -n $! ${services[@]+"${services[@]}"} || status=$?
    if kill -0 $! 2>/dev/null; then
        echo "A service ended with status $status; see its message above." >&2
        exit 1
    fi
    return $status
}
