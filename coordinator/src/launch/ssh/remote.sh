# What a coordinator calls on a host, in a shell that `ssh` starts there. $mark begins each line that is meant for it, $run
# names the run. A life is one start of a member, MEMBER.NUMBER, with numbers that grow; its folder holds
#   process   "PID START LEADER START BOOT": the member, the shell that waits for it, when they began, and the boot of the host
#   exit      the exit code of the member; `-` where nobody knows it
# Some shells tell with all its words and input that a process has ended.
exec 2>/dev/null
host=$(uname -n)
boot=$(cat /proc/sys/kernel/random/boot_id)
folder=$HOME/.tempflow/runs/$run/$host

# A process id may be used again, but not with the same start.
clock='start_of() { # PID, which is no zombie
    line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    set -- ${line##*) }
    [ "$1" != Z ] && [ "$1" != X ] && echo "${20}"
}'
eval "$clock"

# Stays beside the member to learn its exit code, as whoever started it cannot wait for it.
keeper=$clock'
trap "" HUP
life=$1; shift
exec 3<&0 </dev/null
"$@" <&3 3<&- &
pid=$!
exec 3<&-
echo "$pid $(start_of $pid || echo -) $$ $(start_of $$ || echo -) $(cat /proc/sys/kernel/random/boot_id)" >"$life/process.new"
mv "$life/process.new" "$life/process"
wait $pid
echo $? >"$life/exit.new"
mv "$life/exit.new" "$life/exit"'

say() {
    printf '%s %s\n' "$mark" "$*"
}

is_living() { # PID START BOOT
    [ -n "$2" ] && [ "$3" = "$boot" ] && [ "$(start_of "$1")" = "$2" ]
}

# Whether the member of a life runs, or the shell that is about to tell how it ended.
is_running() { # LIFE
    pid= leader=
    [ ! -f "$folder/$1/exit" ] && [ -f "$folder/$1/process" ] || return 1
    read -r pid start leader leader_start its_boot <"$folder/$1/process"
    is_living "$pid" "$start" "$its_boot" || is_living "$leader" "$leader_start" "$its_boot"
}

look() { # LIFE
    if is_running "$1"; then
        say "$1 running $pid"
    elif [ -f "$folder/$1/exit" ] || [ -f "$folder/$1/process" ]; then
        code=-
        [ ! -f "$folder/$1/exit" ] || read -r code <"$folder/$1/exit"
        tail -n 15 "$folder/${1%.*}.log" 2>/dev/null | tail -c 8192 | sed "s/^/$mark $1 log /"
        echo
        say "$1 ended $code"
    elif [ -d "$folder/$1" ]; then
        say "$1 beginning"
    else
        say "$1 absent"
    fi
}

# Ends a life, and sees to it that one that is absent does not begin any more.
end() { # SIGNAL LIFE
    if [ ! -d "$folder/$2" ]; then
        (umask 077 && mkdir -p "$folder/$2" && echo - >"$folder/$2/exit")
    elif is_running "$2"; then
        case $1 in
        KILL) kill -KILL "-$leader" ;;
        *) kill "-$1" "$pid" ;;
        esac
    fi
}

# Whether a life may begin now: 1 where that has been answered, 2 where it is to be looked at.
begin() { # LIFE PROGRAM
    if [ ! -f "$2" ] || [ ! -x "$2" ]; then
        say "$1 missing $2"
        return 1
    fi
    if ! command -v setsid >/dev/null; then
        say "$1 missing setsid"
        return 1
    fi
    if ! problem=$( (umask 077 && mkdir -p "$folder") 2>&1); then
        say "$1 refused $problem"
        return 1
    fi
    [ ! -d "$folder/$1" ] || return 2
    # In the order of their numbers.
    newest=$1
    for other in "$folder/${1%.*}".*/; do
        [ ! -d "$other" ] || newest=$(basename "$other")
    done
    # An order that comes late, when a newer start has been made, comes to nothing.
    if [ "$(printf '%s\n' "$newest" "$1" | LC_ALL=C sort | tail -n 1)" != "$1" ]; then
        end KILL "$1"
        return 2
    fi
    for other in "$folder/${1%.*}".*/; do
        [ -d "$other" ] || continue
        other=$(basename "$other")
        n_waits=0
        while is_running "$other"; do
            end KILL "$other"
            n_waits=$((n_waits + 1))
            if [ $n_waits -gt 50 ]; then
                say "$1 refused process $pid of an earlier start does not end"
                return 1
            fi
            sleep 0.1
        done
    done
    if ! problem=$(mkdir "$folder/$1" 2>&1); then
        say "$1 refused $problem"
        return 1
    fi
}

# Looks at a life that has just begun, once there is something to see.
settle() { # LIFE
    n_waits=0
    while [ $n_waits -lt 30 ] && [ ! -f "$folder/$1/process" ] && [ ! -f "$folder/$1/exit" ]; do
        n_waits=$((n_waits + 1))
        sleep 0.1
    done
    look "$1"
}

say "host $host"
