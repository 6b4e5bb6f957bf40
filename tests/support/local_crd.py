"""A CustomResourceDefinition for tests, with one field for each kind of rule."""

from typing import Any

import yaml

BOX = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boxes.shop.example}
spec:
  group: shop.example
  scope: Namespaced
  names: {plural: boxes, kind: Box, shortNames: [bx]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.size}}
    additionalPrinterColumns:
    - {name: Mode, type: string, jsonPath: .spec.mode}
    - {name: Size, type: integer, jsonPath: .spec.size, description: the size}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status', priority: 1}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [mode]
            properties:
              mode: {type: string, enum: [fast, slow]}
              host: {type: string, pattern: '^[a-z.]+$', maxLength: 8, minLength: 2}
              size: {type: integer, format: int32, minimum: 1, maximum: 10, default: 3}
              ratio: {type: number, minimum: 0, exclusiveMinimum: true, maximum: 2, multipleOf: 0.5}
              when: {type: string, format: date-time}
              tags: {type: array, minItems: 1, maxItems: 2,
                x-kubernetes-list-type: set, items: {type: string}}
              port: {x-kubernetes-int-or-string: true}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              labels: {type: object, additionalProperties: {type: string}, maxProperties: 2}
              empty: {type: string, nullable: true}
              one:
                type: object
                properties: {a: {type: string}, b: {type: string}}
                oneOf: [{required: [a]}, {required: [b]}]
              parts:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties: {name: {type: string}, count: {type: integer, default: 1}}
            x-kubernetes-validations:
            - {rule: "self.mode != 'slow' || self.size <= 5", message: slow boxes are small}
          status:
            type: object
            properties:
              size: {type: integer}
              conditions:
                type: array
                items:
                  type: object
                  required: [type, status]
                  properties: {type: {type: string}, status: {type: string, enum: ["True", "False"]}}
"""


def box_crd() -> dict[str, Any]:
    """The definition as a client sends it."""
    found: dict[str, Any] = yaml.safe_load(BOX)
    return found


def crd_with(schema: dict[str, Any], **version: Any) -> dict[str, Any]:
    """A definition of Things whose spec has this schema."""
    crd = box_crd()
    crd["metadata"]["name"] = "things.shop.example"
    crd["spec"]["names"] = {"plural": "things", "kind": "Thing"}
    root = {"type": "object", "properties": {"spec": schema}}
    crd["spec"]["versions"] = [
        {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": root}, **version}
    ]
    return crd
