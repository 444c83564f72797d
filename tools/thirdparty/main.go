// Command thirdparty prints the third-party protos that Redoubt's contracts import, from the descriptors that their Go
// modules carry, so that nothing is vendored and the versions stand in go.mod alone.
//
// It writes the transitive closure of the files listed in main below the folder given as its only argument, without
// google/protobuf/*, which buf has built in. The folder is emptied first.
package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	// Imported for the descriptors that they register.
	_ "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	_ "google.golang.org/genproto/googleapis/api/annotations"
	_ "google.golang.org/genproto/googleapis/rpc/code"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails"
	_ "google.golang.org/genproto/googleapis/rpc/status"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("thirdparty: ")
	if len(os.Args) != 2 {
		log.Fatal("usage: thirdparty FOLDER")
	}
	roots := []string{
		"buf/validate/validate.proto",
		"google/api/annotations.proto",
		"google/api/client.proto",
		"google/api/field_behavior.proto",
		"google/api/http.proto",
		"google/api/resource.proto",
		"google/rpc/code.proto",
		"google/rpc/error_details.proto",
		"google/rpc/status.proto",
	}
	if err := print(os.Args[1], roots); err != nil {
		log.Fatal(err)
	}
}

// print writes the closure of roots into dir, each file under its import path.
func print(dir string, roots []string) error {
	files, err := closure(roots)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	printer := &protoprint.Printer{Compact: true}
	for _, file := range files {
		target := filepath.Join(dir, filepath.FromSlash(file.Path()))
		text, err := printer.PrintProtoToString(file)
		if err != nil {
			return fmt.Errorf("print %s: %w", file.Path(), err)
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// closure finds roots and all that they import, without google/protobuf/*.
func closure(roots []string) ([]protoreflect.FileDescriptor, error) {
	seen := map[string]bool{}
	var files []protoreflect.FileDescriptor
	var visit func(protoreflect.FileDescriptor)
	visit = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] || strings.HasPrefix(file.Path(), "google/protobuf/") {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			visit(file.Imports().Get(i).FileDescriptor)
		}
		files = append(files, file)
	}
	for _, root := range roots {
		file, err := protoregistry.GlobalFiles.FindFileByPath(root)
		if err != nil {
			return nil, fmt.Errorf("%s is in no imported Go package: %w", root, err)
		}
		visit(file)
	}
	return files, nil
}
