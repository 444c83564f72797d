package blob

import (
	"context"
	"errors"
	"io/fs"
	"path"

	"golang.org/x/sync/errgroup"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// batchAtOnce is how many blobs of a PutAll are written at a time: their fsyncs share commits of the file system's journal.
const batchAtOnce = 32

// Item is a blob of a PutAll.
type Item struct {
	Name    string
	Content []byte
}

// PutAll stores many small blobs, each under its name, as Put does: when it returns nil all of them are on stable storage. After an error some may
// stand, each of them whole; it can be repeated. A name that comes twice is refused.
func (s *Store) PutAll(ctx context.Context, items []Item) error {
	names := make(map[string]bool, len(items))
	for _, i := range items {
		if err := CheckName(i.Name); err != nil {
			return err
		}
		if names[i.Name] {
			return fault.InvalidArgument("a name stands twice among the blobs that are to be stored together")
		}
		names[i.Name] = true
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return mapped(ctx, s.driver.putAll(ctx, items))
}

// each calls fn for every index below n, batchAtOnce at a time, until one fails.
func each(ctx context.Context, n int, fn func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(batchAtOnce)
	for i := range n {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return fn(ctx, i)
		})
	}
	return g.Wait()
}

// putAll brings the bytes of all to disk, then gives them their names, then brings each folder to disk once.
func (f *folder) putAll(ctx context.Context, items []Item) (err error) {
	if f.broken.Load() {
		return errBroken()
	}
	from := make([]string, len(items))
	defer func() {
		for _, name := range from {
			if err != nil && name != "" {
				_ = f.root.Remove(name) // not there if it has its name by now
			}
		}
	}()
	if err := each(ctx, len(items), func(_ context.Context, i int) error { return f.stage(&from[i], items[i].Content) }); err != nil {
		return err
	}
	if f.broken.Load() {
		return errBroken() // another one's fsync failed meanwhile
	}
	dirs := make(map[string]bool)
	for i, item := range items {
		if err := f.rename(from[i], item.Name); err != nil {
			return err
		}
		dirs[path.Dir(item.Name)] = true
	}
	for dir := range dirs {
		if err := f.settle(dir); err != nil {
			return err
		}
	}
	return nil
}

// stage writes content to a temporary file, whose name it sets, and on to disk.
func (f *folder) stage(name *string, content []byte) error {
	file, from, err := f.temporary()
	if err != nil {
		return err
	}
	*name = from
	if _, err = file.Write(content); err == nil {
		err = f.sync(file)
	}
	return errors.Join(err, file.Close())
}

// settle brings the names in a folder to disk. One that is not there has been deleted since, with what lay in it.
func (f *folder) settle(dir string) error {
	if err := f.syncDir(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// putAll sends each blob as an object of its own.
func (b *bucket) putAll(ctx context.Context, items []Item) error {
	return each(ctx, len(items), func(ctx context.Context, i int) error {
		w := &s3Writer{ctx: ctx, bucket: b, key: b.key(items[i].Name)}
		_, _ = w.Write(items[i].Content) // Close says what failed
		return w.Close()
	})
}
