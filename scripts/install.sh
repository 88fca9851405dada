#!/bin/sh
# install.sh BINARY PREFIX: `ft` into PREFIX/bin and the libtorch that it loads into PREFIX/lib/ft, where the binary looks
# first; manual pages and completions into PREFIX/share. Hard links where the file system allows it, so that nothing is held twice; the clone can be deleted afterwards.
set -eu
cd "$(dirname "$0")/.."
binary=$1
prefix=$2

mkdir -p "$prefix/bin" "$prefix/lib"
partial=$prefix/lib/ft.partial
rm -rf "$partial"
mkdir -p "$partial/torch"
for folder in torch/lib nvidia; do
    source=third_party/libtorch/$folder
    if ! cp -al "$source" "$partial/$folder" 2> /dev/null; then
        rm -rf "${partial:?}/$folder"
        cp -a "$source" "$partial/$folder"
    fi
done
rm -rf "$prefix/lib/ft"
mv "$partial" "$prefix/lib/ft"
install -m 755 "$binary" "$prefix/bin/.ft.partial"
mv "$prefix/bin/.ft.partial" "$prefix/bin/ft"

# Fails here, and with words, if the libraries cannot be found without the clone.
(cd / && env -i "$prefix/bin/ft" --version)

share=$prefix/share
mkdir -p "$share/bash-completion/completions" "$share/zsh/site-functions" "$share/fish/vendor_completions.d"
"$prefix/bin/ft" man "$share/man/man1" > /dev/null
"$prefix/bin/ft" completions bash > "$share/bash-completion/completions/ft"
"$prefix/bin/ft" completions zsh > "$share/zsh/site-functions/_ft"
"$prefix/bin/ft" completions fish > "$share/fish/vendor_completions.d/ft.fish"
echo "installed $prefix/bin/ft"
case ":$PATH:" in
    *":$prefix/bin:"*) ;;
    *) echo "hint: $prefix/bin is not on your PATH" ;;
esac
