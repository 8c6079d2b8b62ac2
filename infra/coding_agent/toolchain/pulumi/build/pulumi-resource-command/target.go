package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/pkg/sftp"
	"github.com/pulumi/pulumi-go-provider/infer/types"
)

// textMode is the mode of a file that is made of a text.
const textMode = 0o644

// target is the files of a host.
type target struct{ files *sftp.Client }

// take copies a source to a path.
func (t *target) take(source types.AssetOrArchive, name string) error {
	if source.Asset != nil && source.Asset.IsText() {
		return t.write(name, strings.NewReader(source.Asset.Text), textMode)
	}
	local := ""
	if source.Asset != nil {
		local = source.Asset.Path
	} else {
		local = source.Archive.Path
	}
	// Into a folder that is there already; under the name that was given otherwise.
	if there, err := t.files.Stat(name); err == nil && there.IsDir() {
		name = path.Join(name, filepath.Base(local))
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return t.takeTree(local, name)
}

// takeTree copies a file, or a folder with all that is in it.
func (t *target) takeTree(local, name string) error {
	root, err := filepath.EvalSymlinks(local)
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(file string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		return t.takeOne(file, path.Join(name, filepath.ToSlash(below)))
	})
}

// takeOne makes a folder, or copies a file with its mode. What is neither is left out; a link is what it leads to.
func (t *target) takeOne(local, name string) error {
	info, err := os.Stat(local)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return t.files.MkdirAll(name)
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	file, err := os.Open(local)
	if err != nil {
		return err
	}
	defer file.Close()
	return t.write(name, file, info.Mode().Perm())
}

func (t *target) write(name string, content io.Reader, mode fs.FileMode) error {
	if err := t.files.MkdirAll(path.Dir(name)); err != nil {
		return err
	}
	file, err := t.files.Create(name)
	if err != nil {
		return err
	}
	if _, err := file.ReadFrom(content); err != nil {
		file.Close()
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return t.files.Chmod(name, mode)
}
